"""The public surface, name by name: what code written for Dassl and CoOp imports, and that it behaves.

The first table is the census of 19 public repositories (module, name, number of repositories); each row has a check.
"""

import importlib
import inspect
import json
import operator

import pytest
import torch
from clip_models import VIT, random_state
from dassl_toys import CLASSES, PER_CLASS, draw_samples, toy_config
from torch import nn
from yacs.config import CfgNode

from clip import clip
from dassl.config import get_cfg_default
from dassl.engine import TRAINER_REGISTRY, build_trainer


def _is_registry(registry):
    def register(name):
        return registry.register()(type(name, (), {}))

    try:
        assert registry.get(register("Row").__name__).__name__ in registry.registered_names()
        with pytest.raises(KeyError, match='An object named "Row" was already registered in "'):
            register("Row")
        registry.register(type("Row", (), {}), force=True)
    finally:
        del registry._objects["Row"]


def _optimizer(build, path):
    optim = build(nn.Linear(2, 2), get_cfg_default().OPTIM)
    assert isinstance(optim, torch.optim.Adam)
    assert len(optim.param_groups[0]["params"]) == 2


def _schedule(build, path):
    cfg = get_cfg_default().OPTIM
    cfg.LR_SCHEDULER, cfg.WARMUP_EPOCH, cfg.WARMUP_TYPE, cfg.MAX_EPOCH = "cosine", 1, "constant", 5
    optim = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.002)
    schedule, rates = build(optim, cfg), []
    for _ in range(5):
        rates.append(optim.param_groups[0]["lr"])
        optim.step()
        schedule.step()
    assert rates == pytest.approx([1e-05, 0.002, 0.00180902, 0.00130902, 0.000690983], rel=1e-5)


def _checkpoint(load, path):
    torch.save({"state_dict": {"a": torch.ones(2)}, "epoch": 3}, path / "model.pth.tar-3")
    assert load(str(path / "model.pth.tar-3"))["epoch"] == 3
    with pytest.raises(ValueError, match="None"):
        load(None)
    with pytest.raises(FileNotFoundError):
        load(str(path / "model.pth.tar-4"))


def _pretrained(load, path):
    torch.save({"state_dict": {"module.weight": torch.ones(2, 2), "bias": torch.ones(3)}}, path / "pretrained.pt")
    model = nn.Linear(2, 2)
    load(model, str(path / "pretrained.pt"))
    assert (model.weight == 1).all()


def _json(path, name="table.json"):
    (path / name).write_text(json.dumps([1, 2]))
    return str(path / name)


def _write_json(write, path):
    write({"a": [1]}, str(path / "new" / "file.json"))
    assert json.loads((path / "new" / "file.json").read_text()) == {"a": [1]}


def _listing(names, path):
    _json(path, ".hidden")
    _json(path, "b")
    assert names(str(path), sort=True) == ["b"]


def _seed(set_random_seed, path):
    set_random_seed(3)
    first = torch.rand(2)
    set_random_seed(3)
    assert torch.equal(first, torch.rand(2))


def _logger(setup_logger, path):
    import dassl.utils.logger

    setup_logger(str(path / "out"))
    print("a line")
    dassl.utils.logger.close_logger()
    assert (path / "out" / "log.txt").read_text() == "a line\n"
    setup_logger(None)


def _dataset(base, path):
    data = base(train_x=draw_samples(path), test=draw_samples(path))
    assert (data.num_classes, data.classnames[1], data.lab2cname[2]) == (3, "shade_1", "shade_2")
    assert len(data.generate_fewshot_dataset(data.train_x, num_shots=2)) == 2 * CLASSES
    assert list(data.split_dataset_by_label(data.train_x)) == [0, 1, 2]
    assert base.get_num_classes(data.test) == 3
    assert base.get_lab2cname(data.test)[1] == data.classnames


def _datum(datum, path):
    item = draw_samples(path)[0]
    assert vars(item).keys() == {"_impath", "_label", "_domain", "_classname"}
    assert (item.label, item.domain, item.classname) == (0, 0, "shade_0")
    with pytest.raises(AssertionError):
        datum(impath=str(path / "nothing.png"), label=0, classname="x")


def _accuracy(compute, path):
    scores, labels = torch.tensor([[1.0, 2.0, 0.0], [3.0, 0.0, 4.0]]), torch.tensor([1, 0])
    assert compute(scores, labels)[0].item() == 50.0
    assert [value.item() for value in compute((scores, "more"), labels, topk=(1, 2))] == [50.0, 100.0]


def _trainer(build, path):
    cfg = get_cfg_default()
    cfg.TRAINER.NAME = "NoSuchTrainer"
    with pytest.raises(ValueError, match="unknown trainer"):
        build(cfg)


def _transform(build, path):
    cfg = get_cfg_default()
    cfg.INPUT.TRANSFORMS = ["random_resized_crop", "random_flip", "normalize"]
    assert [type(step).__name__ for step in build(cfg, is_train=True).transforms] == [
        "RandomResizedCrop",
        "RandomHorizontalFlip",
        "ToTensor",
        "Normalize",
    ]
    cfg.INPUT.NO_TRANSFORM = True
    assert build(cfg, is_train=False) is None


def _wrapper(wrapper, path):
    from dassl.data.transforms import build_transform

    cfg = get_cfg_default()
    data = wrapper(cfg, draw_samples(path), transform=build_transform(cfg, is_train=False), is_train=False)
    assert data[1].keys() == {"img", "label", "domain", "impath", "index"}
    assert data[1]["img"].shape == (3, 224, 224)
    data.transform = None
    assert data[1]["img"].size == (12, 10)


def _isfile(check, path):
    assert check(_json(path))
    with pytest.warns(UserWarning, match="No file found"):
        assert not check(str(path / "nothing"))


def _average(meter, path):
    meter = meter()
    meter.update(1.0)
    meter.update(torch.tensor(3.0))
    assert (meter.val, meter.avg, meter.count) == (3.0, 2.0, 2)


def _metrics(meter, path):
    meter = meter()
    meter.update({"loss": torch.tensor(1.0), "acc": 25.0})
    meter.update({"loss": 3.0, "acc": 75.0})
    meter.update(None)
    assert str(meter) == "loss 3.0000 (2.0000) acc 75.0000 (50.0000)"
    assert [name for name, _ in meter.meters.items()] == ["loss", "acc"]


def _clean(clean, path):
    cfg = get_cfg_default()
    cfg.TRAINER.COOP, cfg.TRAINER.OTHER = CfgNode({"N_CTX": 16}), CfgNode({"X": 1})
    clean(cfg, "COOP")
    assert set(cfg.TRAINER) == {"NAME", "COOP"}


def _sampler(build, path):
    assert sorted(build("RandomSampler", cfg=get_cfg_default(), data_source=range(5), batch_size=2)) == [0, 1, 2, 3, 4]
    assert list(build("SequentialSampler", data_source=range(3))) == [0, 1, 2]
    with pytest.raises(ValueError, match="sampler"):
        build("NoSampler", data_source=range(3))


def _writer(writer, path):
    writer = writer(log_dir=str(path / "events"))
    writer.add_scalar("train/loss", 1.0, 0)
    writer.close()


def _radam(radam, path):
    weight = nn.Parameter(torch.ones(2))
    optim = radam([weight], lr=0.1, betas=(0.9, 0.999), weight_decay=5e-4)
    weight.sum().backward()
    optim.step()
    assert (weight < 1).all()


def _trainer_class(kind, path):
    assert kind.__mro__[-2].__name__ == "TrainerBase"


def _makes(make, path):
    make(str(path / "a" / "b"))
    make(str(path / "a" / "b"))
    assert (path / "a" / "b").is_dir()


def _registered(registry, path):
    _is_registry(registry)


def _config(defaults, path):
    cfg = defaults()
    cfg.TRAINER.MINE = CfgNode({"A": 1})
    cfg.freeze()
    cfg.OPTIM["LR"] = 0.5
    assert (cfg.OPTIM.LR, isinstance(cfg, CfgNode)) == (0.5, True)
    assert "MINE" not in defaults().TRAINER


CENSUS = [
    ("dassl.engine", "TRAINER_REGISTRY", 19, _registered),
    ("dassl.optim", "build_lr_scheduler", 19, _schedule),
    ("dassl.utils", "load_checkpoint", 19, _checkpoint),
    ("dassl.data.datasets", "DATASET_REGISTRY", 18, _registered),
    ("dassl.data.datasets", "DatasetBase", 18, _dataset),
    ("dassl.data.datasets", "Datum", 18, _datum),
    ("dassl.utils", "mkdir_if_missing", 18, _makes),
    ("dassl.utils", "listdir_nohidden", 18, _listing),
    ("dassl.optim", "build_optimizer", 18, _optimizer),
    ("dassl.utils", "load_pretrained_weights", 18, _pretrained),
    ("dassl.metrics", "compute_accuracy", 18, _accuracy),
    ("dassl.utils", "read_json", 18, lambda read, path: read(_json(path)) == [1, 2]),
    ("dassl.utils", "collect_env_info", 18, lambda collect, path: "PyTorch" in collect() and "Pillow" in collect()),
    ("dassl.config", "get_cfg_default", 18, _config),
    ("dassl.utils", "set_random_seed", 18, _seed),
    ("dassl.utils", "setup_logger", 18, _logger),
    ("dassl.engine", "build_trainer", 18, _trainer),
    ("dassl.utils", "write_json", 18, _write_json),
    ("dassl.engine", "TrainerX", 17, _trainer_class),
    ("dassl.data.transforms", "build_transform", 12, _transform),
    ("dassl.data", "DatasetWrapper", 11, _wrapper),
    ("dassl.utils", "check_isfile", 11, _isfile),
    ("dassl.utils", "AverageMeter", 2, _average),
    ("dassl.utils", "MetricMeter", 2, _metrics),
    ("dassl.config", "clean_cfg", 1, _clean),
    ("dassl.data.data_manager", "DatasetWrapper", 1, _wrapper),
    ("dassl.data.samplers", "build_sampler", 1, _sampler),
    ("dassl.engine.trainer", "AverageMeter", 1, _average),
    ("dassl.engine.trainer", "MetricMeter", 1, _metrics),
    ("dassl.engine.trainer", "SummaryWriter", 1, _writer),
    ("dassl.engine.trainer", "TrainerX", 1, _trainer_class),
    ("dassl.engine", "SimpleTrainer", 1, _trainer_class),
    ("dassl.optim.radam", "RAdam", 1, _radam),
    ("dassl.utils.tools", "mkdir_if_missing", 1, _makes),
]


@pytest.mark.parametrize(("module", "name", "repositories", "check"), CENSUS, ids=[f"{m}.{n}" for m, n, _, _ in CENSUS])
def test_census(module, name, repositories, check, tmp_path):
    assert check(getattr(importlib.import_module(module), name), tmp_path) in (None, True)


SIGNATURES = {
    "dassl.config.clean_cfg": "cfg trainer",
    "dassl.data.DataManager.__init__": "self cfg custom_tfm_train custom_tfm_test dataset_wrapper",
    "dassl.data.DatasetWrapper.__init__": "self cfg data_source transform is_train",
    "dassl.data.data_manager.build_data_loader": "cfg sampler_type data_source batch_size n_domain n_ins tfm is_train "
    "dataset_wrapper",
    "dassl.data.datasets.DatasetBase.__init__": "self train_x train_u val test",
    "dassl.data.datasets.DatasetBase.download_data": "self url dst from_gdrive",
    "dassl.data.datasets.Datum.__init__": "self impath label domain classname",
    "dassl.data.samplers.build_sampler": "sampler_type cfg data_source batch_size n_domain n_ins",
    "dassl.data.transforms.build_transform": "cfg is_train choices",
    "dassl.engine.SimpleTrainer.__init__": "self cfg",
    "dassl.engine.TrainerBase.__init__": "self",
    "dassl.engine.TrainerBase.get_model_names": "self names",
    "dassl.engine.TrainerBase.init_writer": "self log_dir",
    "dassl.engine.TrainerBase.load_model": "self directory epoch",
    "dassl.engine.TrainerBase.model_backward": "self loss",
    "dassl.engine.TrainerBase.model_backward_and_update": "self loss names",
    "dassl.engine.TrainerBase.model_update": "self names",
    "dassl.engine.TrainerBase.model_zero_grad": "self names",
    "dassl.engine.TrainerBase.prograd_backward_and_update": "self loss_a loss_b lambda_ names",
    "dassl.engine.TrainerBase.register_model": "self name model optim sched",
    "dassl.engine.TrainerBase.resume_model_if_exist": "self directory",
    "dassl.engine.TrainerBase.save_model": "self epoch directory is_best val_result model_name",
    "dassl.engine.TrainerBase.set_model_mode": "self mode names",
    "dassl.engine.TrainerBase.train": "self start_epoch max_epoch",
    "dassl.engine.TrainerBase.update_lr": "self names",
    "dassl.engine.TrainerBase.write_scalar": "self tag scalar_value global_step",
    "dassl.engine.SimpleTrainer.get_current_lr": "self names",
    "dassl.engine.SimpleTrainer.model_inference": "self input",
    "dassl.engine.SimpleTrainer.parse_batch_test": "self batch",
    "dassl.engine.SimpleTrainer.test": "self split",
    "dassl.engine.SimpleTrainer.train": "self",
    "dassl.engine.TrainerX.forward_backward": "self batch",
    "dassl.engine.TrainerX.parse_batch_train": "self batch",
    "dassl.engine.TrainerX.run_epoch": "self",
    "dassl.engine.TrainerXU.forward_backward": "self batch_x batch_u",
    "dassl.evaluation.Classification.__init__": "self cfg lab2cname",
    "dassl.evaluation.Classification.process": "self mo gt",
    "dassl.metrics.compute_accuracy": "output target topk",
    "dassl.optim.build_lr_scheduler": "optimizer optim_cfg",
    "dassl.optim.build_optimizer": "model optim_cfg param_groups",
    "dassl.utils.AverageMeter.__init__": "self ema",
    "dassl.utils.AverageMeter.update": "self val n",
    "dassl.utils.MetricMeter.__init__": "self delimiter",
    "dassl.utils.Registry.register": "self obj force",
    "dassl.utils.count_num_param": "model params",
    "dassl.utils.listdir_nohidden": "path sort",
    "dassl.utils.load_checkpoint": "fpath",
    "dassl.utils.load_pretrained_weights": "model weight_path",
    "dassl.utils.resume_from_checkpoint": "fdir model optimizer scheduler",
    "dassl.utils.save_checkpoint": "state save_dir is_best remove_module_from_keys model_name",
    "dassl.utils.set_random_seed": "seed",
    "dassl.utils.setup_logger": "output",
    "dassl.utils.write_json": "obj fpath",
    "clip.clip._download": "url root",
    "clip.clip.build_model": "state_dict design_details",
    "clip.clip.load": "name device jit download_root",
    "clip.clip.tokenize": "texts context_length truncate",
    "clip.model.VisionTransformer.__init__": "self input_resolution patch_size width layers heads output_dim",
}


@pytest.mark.parametrize("dotted", SIGNATURES)
def test_signatures(dotted):
    """Arguments that callers give by position or by name stand where they expect them; more may follow."""
    parts = dotted.split(".")
    depth = next(i for i, part in enumerate(parts) if not part.islower() or i == len(parts) - 1)
    found = importlib.import_module(".".join(parts[:depth]))
    for part in parts[depth:]:
        found = getattr(found, part)
    wanted = SIGNATURES[dotted].split()
    parameters = list(inspect.signature(found).parameters.values())
    assert [p.name for p in parameters[: len(wanted)]] == wanted
    further = [p for p in parameters[len(wanted) :] if p.kind is not p.VAR_KEYWORD]
    assert all(p.default is not p.empty for p in further)


def test_members_that_trainers_use(tmp_path, monkeypatch):
    """What trainer classes reach through `self`, and callers through a trainer, before and after training."""
    trainer = build_trainer(toy_config(monkeypatch, tmp_path))
    for name in ("cfg", "device", "dm", "model", "optim", "sched", "train_loader_x", "test_loader", "val_loader"):
        assert getattr(trainer, name) is not None, name
    assert trainer.train_loader_u is not None
    assert (trainer.epoch, trainer.start_epoch, trainer.max_epoch, trainer.num_classes) == (0, 0, 2, CLASSES)
    assert list(trainer._models) == list(trainer._optims) == list(trainer._scheds) == trainer.get_model_names()
    assert (trainer.dm.num_classes, trainer.dm.dataset.classnames[0]) == (CLASSES, "shade_0")
    assert trainer.lab2cname == trainer.dm.lab2cname
    assert trainer.best_result == float("-inf")
    assert trainer.num_source_domains == 0
    trainer.train()
    assert (trainer.batch_idx, trainer.num_batches, trainer.epoch) == (2, 3, 1)
    assert trainer.time_start > 0
    assert trainer.get_current_lr() == trainer.optim.param_groups[0]["lr"]
    trainer.set_model_mode("eval")
    assert not trainer.model.training
    trainer.evaluator.reset()
    for batch in trainer.test_loader:
        images, labels = trainer.parse_batch_test(batch)
        trainer.evaluator.process(trainer.model_inference(images), labels)
    assert list(trainer.evaluator.evaluate()) == ["accuracy", "error_rate", "macro_f1"]
    assert len(trainer.test_loader.dataset) == CLASSES * PER_CLASS
    trainer.write_scalar("after/closing", 1.0)


MODEL_ATTRIBUTES = """dtype encode_image encode_text ln_final.weight logit_scale positional_embedding text_projection
token_embedding.weight transformer transformer.resblocks visual visual.class_embedding visual.conv1.weight.dtype
visual.input_resolution visual.ln_pre visual.output_dim visual.positional_embedding visual.transformer"""


def test_the_package_clip(tmp_path, monkeypatch):
    from clip.model import VisionTransformer, convert_weights
    from clip.simple_tokenizer import SimpleTokenizer as _Tokenizer

    assert {"RN50", "RN101", "RN50x4", "RN50x16", "ViT-B/32", "ViT-B/16", "ViT-L/14"} <= clip._MODELS.keys()
    tokenizer = _Tokenizer()
    assert tokenizer.encoder["<|startoftext|>"] == 49406
    assert tokenizer.decoder[tokenizer.encode("photo")[0]] == "photo</w>"
    tokens = clip.tokenize(["a photo of a cat.", "x"])
    assert (tokens.dtype, tokens.shape) == (torch.long, (2, 77))
    assert tokens.argmax(dim=-1).tolist() == [7, 2]
    with pytest.raises(RuntimeError, match="tokens long"):
        clip.tokenize("cat " * 80)
    assert clip.tokenize("cat " * 80, truncate=True)[0, -1] == 49407

    torch.save(random_state(VIT), tmp_path / "weights.pt")
    monkeypatch.setitem(clip._MODELS, "ViT-B/16", str(tmp_path / "weights.pt"))
    path = clip._download(clip._MODELS["ViT-B/16"])
    with pytest.raises(RuntimeError), pytest.warns((DeprecationWarning, FutureWarning), match="jit"):
        torch.jit.load(path, map_location="cpu")
    model = clip.build_model(torch.load(path, map_location="cpu"))
    assert model.dtype == model.visual.conv1.weight.dtype == torch.float16
    convert_weights(model.float())
    assert model.dtype == torch.float16
    assert isinstance(model.visual, VisionTransformer)
    for name in MODEL_ATTRIBUTES.split():
        assert operator.attrgetter(name)(model) is not None
    assert not hasattr(model, "logit_bias")


def test_the_project_registers_on_import_of_its_own_rooms_only():
    import datasets
    import trainers

    own = {trainers.__name__, datasets.__name__}
    assert {kind.__module__.split(".")[0] for _, kind in TRAINER_REGISTRY} <= own | {"dassl_toys"}

"""Training end to end on made images: log lines, files, resuming, hooks, mistakes."""

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch
from dassl_toys import CLASSES, PER_CLASS, ToyPairTrainer, ToyTrainer, ToyZeroShot, toy_config
from torch import nn

from dassl.data.evidence import images_hash, split_hash
from dassl.engine import SimpleTrainer, TrainerBase, build_trainer
from dassl.engine.record import config_hash
from dassl.utils import setup_logger
from dassl.utils.digests import with_digest
from dassl.utils.logger import close_logger

TOTAL = CLASSES * PER_CLASS


def _metrics(folder):
    return json.loads((folder / "out" / "metrics.json").read_text())


def _train(cfg):
    trainer = build_trainer(cfg)
    trainer.train()
    return trainer


# Log and files


def _lines(out):
    """What a whole run of two epochs prints, as patterns."""
    seconds, number = r"\d+\.\d{3} \(\d+\.\d{3}\)", r"\d+\.\d{4}"
    step = rf"time {seconds} data {seconds} loss {number} \({number}\) acc 50\.0000 \(50\.0000\)"
    rates = iter(["1.0000e-05", "1.0000e-05", "5.0000e-02", "5.0000e-02", "5.0000e-02", "2.5000e-02"])
    transform = [r"\+ to torch tensor of range \[0, 1\]", r"\+ normalization \(mean=\[.*\], std=\[.*\]\)"]
    return [
        "Loading trainer: ToyTrainer",
        "Loading dataset: ToyData",
        "Building transform_train",
        r"\+ random resized crop \(size=\(8, 8\), scale=\(0\.08, 1\.0\)\)",
        r"\+ random flip",
        *transform,
        "Building transform_test",
        r"\+ resize the smaller edge to 8",
        r"\+ 8x8 center crop",
        *transform,
        "---------  -------",
        "Dataset    ToyData",
        "# classes  3",
        f"# train_x  {TOTAL}",
        r"# train_u  \d+",
        r"# val      \d+",
        f"# test     {TOTAL}",
        "---------  -------",
        "Loading evaluator: Classification",
        rf"\d+ of {TOTAL} test images are also trained on \(same content\), such as .*\.png",
        "No checkpoint found, train from scratch",
        rf"Initialize tensorboard \(log_dir={out}/tensorboard\)",
        *(rf"epoch \[1/2\] batch \[{batch}/3\] {step} lr {next(rates)} eta \d:\d\d:\d\d" for batch in (1, 2, 3)),
        r"Decoded images in memory: [\d,]+, \d+\.\d MB of at most 1024 \(DATALOADER.CACHE_MB\)",
        *(rf"epoch \[2/2\] batch \[{batch}/3\] {step} lr {next(rates)} eta \d:\d\d:\d\d" for batch in (1, 2, 3)),
        f"Checkpoint saved to {out}/linear/model.pth.tar-2",
        "Finish training",
        "Finished training",
        "Deploy the last-epoch model",
        r"Evaluate on the \*test\* set",
        "=> result",
        rf"\* total: {TOTAL}",
        r"\* correct: \d+",
        r"\* accuracy: \d+\.\d\d%",
        r"\* error: \d+\.\d\d%",
        r"\* macro_f1: \d+\.\d\d%",
        r"Elapsed: \d:\d\d:\d\d",
    ]


def test_whole_run(tmp_path, monkeypatch, capsys):
    cfg = toy_config(monkeypatch, tmp_path)
    out = tmp_path / "out"
    setup_logger(cfg.OUTPUT_DIR)
    trainer = _train(cfg)
    close_logger()
    log = (out / "log.txt").read_text().splitlines()
    assert capsys.readouterr().out.splitlines() == log
    expected = _lines(out)
    assert len(log) == len(expected)
    for line, pattern in zip(log, expected, strict=True):
        assert re.fullmatch(pattern, line), (line, pattern)
    last = "\n".join(log[-5:])
    assert (last.count("accuracy"), last.count("macro_f1")) == (1, 1)
    files = ["linear", "log.txt", "metrics.json", "predictions.npz", "tensorboard"]
    assert sorted(path.name for path in out.iterdir()) == files
    assert [path.name.split(".")[:3] for path in (out / "tensorboard").iterdir()] == [["events", "out", "tfevents"]]
    assert (trainer._writer, trainer.model_epoch) == (None, 2)
    assert f"* accuracy: {trainer.last_result:.2f}%" in log


def test_metrics_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ToyTrainer, "extra_metrics", lambda self: {"alpha": [0.5]})
    cfg = toy_config(monkeypatch, tmp_path, MODEL__BACKBONE__NAME="tiny", DATASET__NUM_SHOTS=4)
    trainer = _train(cfg)
    metrics = _metrics(tmp_path)
    printed = re.search(r"\* accuracy: (.*)%", capsys.readouterr().out)[1]
    assert printed == f"{metrics['accuracy']:.2f}"
    expected = {
        "trainer": "ToyTrainer", "dataset": "ToyData", "subsample_classes": "all", "seed": 1, "shots": 4, "epoch": 2,
        "backbone": "tiny", "split": "test", "num_classes": CLASSES, "num_test": TOTAL, "num_train": TOTAL,
        "device": "cpu", "alpha": [0.5], "trainable_parameters": (3 * 8 * 8 + 1) * CLASSES, "history": trainer.history,
    }  # fmt: skip
    assert {key: metrics[key] for key in expected} == expected
    assert [(row["epoch"], row["lr"], row["acc"]) for row in metrics["history"]] == [(1, 1e-5, 50.0), (2, 0.05, 50.0)]
    assert metrics["history"][1]["loss"] < metrics["history"][0]["loss"]
    assert metrics["accuracy"] + metrics["error_rate"] == pytest.approx(100)
    assert sum(row["correct"] for row in metrics["per_class"]) * 100 / TOTAL == pytest.approx(metrics["accuracy"])
    assert [row["classname"] for row in metrics["per_class"]] == trainer.dm.dataset.classnames
    assert metrics["config"]["INPUT"]["SIZE"] == [8, 8]
    assert set(metrics["versions"]) == {"python", "torch", "torchvision", "numpy", "pillow", "dassl"}
    assert metrics["peak_memory_bytes"]["host"] > 10**6
    assert metrics["train_seconds"] > 0
    assert metrics["eval_seconds"] > 0
    assert {"macro_f1", "commit", "created", "config_hash", "split_hash"} <= set(metrics)
    contents = [Path(item.impath).read_bytes() for item in trainer.dm.dataset.train_x]
    digests = "\n".join(hashlib.sha256(content).hexdigest() for content in contents)
    assert metrics["train_images_hash"] == hashlib.sha256(digests.encode()).hexdigest()
    assert metrics["test_images_hash"] == images_hash(trainer.dm.dataset.test)
    assert metrics["test_in_train"] == sum(Path(i.impath).read_bytes() in contents for i in trainer.dm.dataset.test)
    assert metrics["full_split_hash"] is None  # the toys' data set does not say
    trainer = build_trainer(cfg)
    with pytest.raises(ValueError, match=r"metrics\.json is the result of a training, which this evaluation would"):
        trainer.test()
    assert _metrics(tmp_path) == metrics
    (tmp_path / "out" / "metrics.json").unlink()
    trainer.test()  # without training
    again = _metrics(tmp_path)
    assert (again["train_images_hash"], again["test_in_train"]) == (None, None)
    assert again["test_images_hash"] == metrics["test_images_hash"]
    Path(trainer.dm.dataset.test[0].impath).write_bytes(Path(trainer.dm.dataset.test[-1].impath).read_bytes())
    trainer.test()  # one picture was replaced under its name
    assert _metrics(tmp_path)["test_images_hash"] != metrics["test_images_hash"]


def test_hashes(tmp_path, monkeypatch):
    cfg = toy_config(monkeypatch, tmp_path)
    same = toy_config(monkeypatch, tmp_path / "elsewhere", RESUME="x", DATALOADER__NUM_WORKERS=1, VERBOSE=False)
    assert config_hash(cfg) == config_hash(same)
    assert config_hash(cfg, "global") != config_hash(same, "global")  # which draw otherwise with other workers
    assert config_hash(cfg) != config_hash(toy_config(monkeypatch, tmp_path, SEED=2))
    first, second = (build_trainer(config).dm.dataset for config in (cfg, same))
    digest = split_hash(cfg.DATASET.ROOT, first.train_x, first.test)
    assert digest == split_hash(same.DATASET.ROOT, second.train_x, second.test)
    assert digest != split_hash(cfg.DATASET.ROOT, first.train_x, first.test[1:])


def test_tensorboard_is_optional(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    _train(toy_config(monkeypatch, tmp_path))
    assert list((tmp_path / "out" / "tensorboard").iterdir()) == []


def test_printing_frequency(tmp_path, monkeypatch, capsys):
    _train(toy_config(monkeypatch, tmp_path, TRAIN__PRINT_FREQ=2, OPTIM__MAX_EPOCH=1))
    assert re.findall(r"batch \[(\d)/3\]", capsys.readouterr().out) == ["2"]


# Checkpoints and resuming


SETTINGS = [
    {"OPTIM__NAME": "sgd"},
    {"OPTIM__NAME": "adadelta", "OPTIM__LR": 0.5, "OPTIM__WARMUP_TYPE": "linear", "OPTIM__WARMUP_EPOCH": 2},
    {"OPTIM__NAME": "adam", "OPTIM__WARMUP_EPOCH": 0},
]


@pytest.mark.parametrize("stop", [1, 3])
@pytest.mark.parametrize("keys", SETTINGS, ids=lambda keys: keys["OPTIM__NAME"])
def test_interrupted_run_goes_on_exactly(tmp_path, monkeypatch, capsys, keys, stop):
    keys = {**keys, "OPTIM__MAX_EPOCH": 5, "TRAIN__CHECKPOINT_FREQ": 1, "DATALOADER__RANDOM_STREAMS": "keyed"}
    whole = _train(toy_config(monkeypatch, tmp_path / "whole", **keys))
    cfg = toy_config(monkeypatch, tmp_path / "parts", **keys)

    def interrupt(self):
        if self.epoch == stop:
            raise KeyboardInterrupt
        SimpleTrainer.before_epoch(self)

    with monkeypatch.context() as patch:
        patch.setattr(ToyTrainer, "before_epoch", interrupt)
        with pytest.raises(KeyboardInterrupt):
            _train(cfg)
    capsys.readouterr()
    torch.manual_seed(99)
    resumed = _train(cfg)
    out = capsys.readouterr().out
    assert f"Found checkpoint at {cfg.OUTPUT_DIR} (will resume training)\n" in out
    assert f"epoch [{stop + 1}/5]" in out
    assert f"epoch [{stop}/5]" not in out
    assert resumed.history == whole.history
    for one, other in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(one, other)
    first, second = _metrics(tmp_path / "whole"), _metrics(tmp_path / "parts")
    assert (first["accuracy"], first["history"]) == (second["accuracy"], second["history"])
    assert (resumed.start_epoch, resumed.model_epoch) == (stop, 5)


@pytest.mark.parametrize("how", ["torn", "flipped", "diverged", "gone"])
def test_a_run_goes_on_exactly_from_the_checkpoint_before_a_damaged_one(tmp_path, monkeypatch, capsys, how):
    keys = {"OPTIM__MAX_EPOCH": 4, "TRAIN__CHECKPOINT_FREQ": 1, "DATALOADER__RANDOM_STREAMS": "keyed"}
    whole = _train(toy_config(monkeypatch, tmp_path / "whole", **keys))
    cfg = toy_config(monkeypatch, tmp_path / "parts", **keys)
    _train(cfg)
    last = tmp_path / "parts" / "out" / "linear" / "model.pth.tar-4"
    data = last.read_bytes()
    if how == "diverged":
        checkpoint = torch.load(last, weights_only=True)
        checkpoint["state_dict"]["1.bias"][0] = float("nan")
        torch.save(with_digest(checkpoint), last)
    elif how == "gone":
        last.unlink()
    else:
        at = data.index(torch.load(last, weights_only=True)["state_dict"]["1.bias"].numpy().tobytes())
        last.write_bytes(data[:300] if how == "torn" else data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    if how in ("diverged", "torn"):
        with pytest.raises(ValueError, match=r"model\.pth\.tar-4"):
            build_trainer(cfg).load_model(cfg.OUTPUT_DIR, epoch=4)
    capsys.readouterr()
    torch.manual_seed(99)
    resumed = _train(cfg)
    said = capsys.readouterr().out
    assert (how == "gone") == (f'"{last}"' not in said)
    assert "epoch [4/4]" in said
    assert "epoch [3/4]" not in said
    for one, other in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_run_whose_only_checkpoint_is_damaged_begins_anew(tmp_path, monkeypatch, capsys):
    cfg = toy_config(monkeypatch, tmp_path)
    whole = _train(cfg)
    path = tmp_path / "out" / "linear" / "model.pth.tar-2"
    path.write_bytes(path.read_bytes()[:100])
    capsys.readouterr()
    again = _train(cfg)
    said = capsys.readouterr().out
    assert f'"{path}" is no checkpoint, or is damaged' in said
    assert "No checkpoint found, train from scratch" in said
    assert again.start_epoch == 0
    assert len(again.history) == len(whole.history)


def test_finished_run_is_only_tested(tmp_path, monkeypatch, capsys):
    cfg = toy_config(monkeypatch, tmp_path)
    accuracy = _train(cfg) and _metrics(tmp_path)["accuracy"]
    capsys.readouterr()
    elsewhere = toy_config(monkeypatch, tmp_path / "more", RESUME=cfg.OUTPUT_DIR)
    _train(elsewhere)
    assert "epoch [" not in capsys.readouterr().out
    assert _metrics(tmp_path / "more")["accuracy"] == accuracy
    assert _metrics(tmp_path / "more")["epoch"] == 2


def test_checkpoint_frequency_and_extras(tmp_path, monkeypatch):
    monkeypatch.setattr(ToyTrainer, "checkpoint_extras", lambda self: {"classnames": self.dm.dataset.classnames})
    _train(toy_config(monkeypatch, tmp_path, TRAIN__CHECKPOINT_FREQ=2, OPTIM__MAX_EPOCH=5))
    folder = tmp_path / "out" / "linear"
    names = ["checkpoint", "model.pth.tar-2", "model.pth.tar-4", "model.pth.tar-5"]
    assert sorted(path.name for path in folder.iterdir()) == names
    checkpoint = torch.load(folder / "model.pth.tar-4", weights_only=True)
    assert checkpoint["classnames"] == ["shade_0", "shade_1", "shade_2"]
    assert (checkpoint["epoch"], checkpoint["val_result"]) == (4, None)
    assert set(checkpoint) >= {"state_dict", "optimizer", "scheduler"}


def test_best_validation_result(tmp_path, monkeypatch, capsys):
    results = iter([40.0, 70.0, 70.0, 60.0])
    real = SimpleTrainer.test

    def test(self, split=None, is_final=False):
        accuracy = real(self, split)
        assert split != "val" or not (tmp_path / "out" / "metrics.json").exists()
        return next(results) if split == "val" else accuracy

    monkeypatch.setattr(ToyTrainer, "test", test)
    cfg = toy_config(monkeypatch, tmp_path, TEST__FINAL_MODEL="best_val", OPTIM__MAX_EPOCH=4)
    trainer = _train(cfg)
    out = capsys.readouterr().out
    path = tmp_path / "out" / "linear" / "model-best.pth.tar"
    assert out.count("Evaluate on the *val* set") == 4
    assert "Deploy the model with the best val performance\n" in out
    assert f"Load {path} to linear (epoch=2, val_result=70.00)\n" in out
    assert torch.load(path, weights_only=True)["val_result"] == 70.0
    assert (trainer.best_result, _metrics(tmp_path)["epoch"]) == (70.0, 2)
    again = build_trainer(cfg)
    again.resume_model_if_exist(cfg.OUTPUT_DIR)
    assert again.best_result == 70.0


def test_load_model(tmp_path, monkeypatch, capsys):
    cfg = toy_config(monkeypatch, tmp_path)
    trained = _train(cfg)
    trainer = build_trainer(cfg)
    capsys.readouterr()
    trainer.load_model("")
    assert "load_model() is skipped" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match=r"model-best\.pth\.tar"):
        trainer.load_model(cfg.OUTPUT_DIR)
    with pytest.raises(FileNotFoundError, match=r"model\.pth\.tar-7"):
        trainer.load_model(cfg.OUTPUT_DIR, epoch=7)
    trainer.load_model(cfg.OUTPUT_DIR, epoch=2)
    assert "(epoch=2, val_result=None)" in capsys.readouterr().out
    assert torch.equal(trainer.model[1].weight, trained.model[1].weight)
    accuracy = _metrics(tmp_path)["accuracy"]
    (tmp_path / "out" / "metrics.json").unlink()
    assert trainer.test() == accuracy
    old = {"state_dict": trained.model.state_dict(), "epoch": 2}  # as Dassl 0.5.0 wrote it
    torch.save(old, tmp_path / "out" / "linear" / "model.pth.tar-9")
    trainer.load_model(cfg.OUTPUT_DIR, epoch=9)


def test_models_of_different_epochs_are_refused(tmp_path, monkeypatch):
    cfg = toy_config(monkeypatch, tmp_path)
    trainer = build_trainer(cfg)
    trainer.save_model(0, cfg.OUTPUT_DIR)
    trainer.register_model("second", nn.Linear(1, 1), None, None)
    assert trainer.resume_model_if_exist(cfg.OUTPUT_DIR) == 0
    trainer.save_model(0, cfg.OUTPUT_DIR)
    assert trainer.resume_model_if_exist(cfg.OUTPUT_DIR) == 1
    trainer._models.popitem()
    trainer.save_model(1, cfg.OUTPUT_DIR)
    trainer.register_model("second_too", nn.Linear(1, 1), None, None)
    trainer._models.move_to_end("linear")
    trainer._models["second"] = trainer._models.pop("second_too")
    assert trainer.resume_model_if_exist(cfg.OUTPUT_DIR) == 1  # the last that all have: killed between two files
    (tmp_path / "out" / "linear" / "model.pth.tar-1").unlink()
    with pytest.raises(ValueError, match="different epochs"):
        trainer.resume_model_if_exist(cfg.OUTPUT_DIR)


# Evaluation


def test_trainer_without_models(tmp_path, monkeypatch, capsys):
    trainer = build_trainer(toy_config(monkeypatch, tmp_path, trainer="ToyZeroShot"))
    assert isinstance(trainer, ToyZeroShot)
    assert trainer.get_model_names() == []
    trainer.set_model_mode("eval")
    trainer.update_lr()
    trainer.save_model(0, str(tmp_path))
    trainer.load_model(str(tmp_path), epoch=3)
    assert trainer.resume_model_if_exist(str(tmp_path)) == 0
    assert trainer.get_current_lr() == 0.0
    assert trainer.test(is_final=True) == pytest.approx(100 / CLASSES)  # of a tuple the first item counts
    assert _metrics(tmp_path)["trainable_parameters"] == 0
    assert "* accuracy: 33.33%" in capsys.readouterr().out


def test_splits(tmp_path, monkeypatch, capsys):
    trainer = build_trainer(toy_config(monkeypatch, tmp_path, trainer="ToyZeroShot", TEST__SPLIT="val"))
    trainer.test(split="val")
    assert not (tmp_path / "out" / "metrics.json").exists()
    trainer.test()
    assert (_metrics(tmp_path)["split"], _metrics(tmp_path)["num_test"]) == ("val", TOTAL // 3)
    trainer.val_loader = None
    capsys.readouterr()
    trainer.test(split="val")
    assert capsys.readouterr().out.startswith("There is no validation set; the test set takes its place\nEvaluate on")
    with pytest.raises(ValueError, match=r"do you mean .'test'"):
        trainer.test(split="tset")
    trainer.test_loader = None
    with pytest.raises(ValueError, match="ToyData has no test set"):
        trainer.test(split="test")


def test_no_test(tmp_path, monkeypatch, capsys):
    _train(toy_config(monkeypatch, tmp_path, TEST__NO_TEST=True, TEST__FINAL_MODEL="best_val"))
    assert "Evaluate" not in capsys.readouterr().out
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_unknown_trainer(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r'unknown trainer "ToyTrain": do you mean \[.ToyTrainer'):
        build_trainer(toy_config(monkeypatch, tmp_path, trainer="ToyTrain"))


# The base


def _base(*values, lr=1.0):
    """A TrainerBase with a registered model of one parameter."""
    trainer = TrainerBase()
    model = nn.ParameterList([nn.Parameter(torch.tensor(values))])
    trainer.register_model("one", model, torch.optim.SGD(model.parameters(), lr=lr))
    return trainer, model[0]


def test_registration():
    trainer, _ = _base(1.0)
    trainer.register_model("two", nn.Dropout())
    assert trainer.get_model_names() == ["one", "two"]
    assert trainer.get_model_names("two") == ["two"]
    with pytest.raises(AssertionError, match="Found duplicate model names"):
        trainer.register_model("one", nn.Dropout())
    with pytest.raises(ValueError, match=r"do you mean .'two'"):
        trainer.get_model_names(["twoo"])
    trainer.set_model_mode("test", "two")
    assert [trainer._models[name].training for name in ("one", "two")] == [True, False]
    with pytest.raises(KeyError, match="tset"):
        trainer.set_model_mode("tset")
    with pytest.raises(AttributeError, match="super"):
        TrainerBase.__new__(TrainerBase).register_model("x")


def test_steps():
    trainer, p = _base(1.0, 2.0)
    trainer.model_backward_and_update((p * p).sum())
    assert p.tolist() == [-1.0, -2.0]
    trainer.model_zero_grad()
    assert p.grad is None
    trainer.epoch, trainer.batch_idx, trainer.num_batches = 2, 4, 9
    message = r"Loss is infinite or NaN! \(loss = \[nan\] at epoch 3, batch 5 of 9, learning rate 1\.0000e\+00\)"
    with pytest.raises(FloatingPointError, match=message):
        trainer.model_backward_and_update(p.sum() * float("nan"))
    trainer.write_scalar("train/loss", 1.0, 0)  # silent without a writer


def test_prograd_takes_the_conflict_away():
    trainer, p = _base(0.0, 0.0)
    a, b = torch.tensor([1.0, -1.0]), torch.tensor([0.0, 2.0])
    trainer.prograd_backward_and_update((p * a).sum(), (p * b).sum())
    assert p.tolist() == [-1.0, 0.0]  # the part of a against b is gone
    trainer, p = _base(0.0, 0.0)
    trainer.prograd_backward_and_update((p * a).sum(), (p * b).sum(), lambda_=0.5)
    assert p.tolist() == [-1.0, 0.5]
    trainer, p = _base(0.0, 0.0)
    trainer.prograd_backward_and_update((p * a).sum(), (p * -b).sum())
    assert p.tolist() == [-1.0, 1.0]  # no conflict


def test_abstract_parts_say_so(tmp_path, monkeypatch):
    base = TrainerBase()
    for call in (base.run_epoch, base.test):
        with pytest.raises(NotImplementedError):
            call()
    with pytest.raises(NotImplementedError, match="SimpleTrainer must build a model"):
        SimpleTrainer(toy_config(monkeypatch, tmp_path))


@pytest.mark.parametrize(("count", "batches"), [("train_x", 3), ("train_u", 1), ("smaller_one", 1)])
def test_labelled_and_unlabelled_batches(tmp_path, monkeypatch, count, batches):
    cfg = toy_config(monkeypatch, tmp_path, trainer="ToyPairTrainer", TRAIN__COUNT_ITER=count, OPTIM__MAX_EPOCH=1)
    trainer = _train(cfg)
    assert isinstance(trainer, ToyPairTrainer)
    assert (trainer.num_batches, trainer.batch_idx) == (batches, batches - 1)
    assert trainer.history == [{"epoch": 1, "lr": 1e-5, "unlabelled": 6.0}]
    cfg.TRAIN.COUNT_ITER = "trainx"
    with pytest.raises(ValueError, match="COUNT_ITER"):
        build_trainer(cfg).epoch_batches()
    trainer.train_loader_u = None
    with pytest.raises(ValueError, match="needs unlabelled data"):
        trainer.epoch_batches()

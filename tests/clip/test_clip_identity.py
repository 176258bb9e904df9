"""Which model a run uses is known: a name stands for one architecture, and a digest tells weights from others."""

import json
import re
import shutil

import open_clip
import openclip_models as reduced
import pytest
import torch
from clip_models import RESNET, VIT, WRITERS, random_state

import predict
import train
from adaptation.trainer import frozen_backbone
from clip.backbone import weights_digest
from clip.clip import available_models
from clip.loading import load_backbone
from clip.model import ARCHITECTURES, CLIP
from clip.precision import CPU
from clip.weights import CARRIED_MODELS

KEYS = {  # argument of CLIP -> where open_clip's description has it
    "embed_dim": ("embed_dim",),
    "image_resolution": ("vision_cfg", "image_size"),
    "vision_layers": ("vision_cfg", "layers"),
    "vision_width": ("vision_cfg", "width"),
    "vision_patch_size": ("vision_cfg", "patch_size"),
    "context_length": ("text_cfg", "context_length"),
    "vocab_size": ("text_cfg", "vocab_size"),
    "transformer_width": ("text_cfg", "width"),
    "transformer_heads": ("text_cfg", "heads"),
    "transformer_layers": ("text_cfg", "layers"),
}


def test_every_name_stands_for_its_architecture():
    """The sizes are those by which open_clip describes the same models, and those of the carried file."""
    assert list(ARCHITECTURES) == available_models()
    for name, sizes in ARCHITECTURES.items():
        if name == "tiny-ViT":
            load_backbone(name, str(CARRIED_MODELS[name]))  # refuses a file of other sizes
            continue
        described = open_clip.get_model_config(name.replace("/", "-").replace("@336px", "-336"))
        for argument, path in KEYS.items():
            value = described
            for key in path:
                value = value.get(key)
            assert sizes[argument] == (tuple(value) if isinstance(value, list) else value), (name, argument)


@pytest.fixture
def file_of(tmp_path):
    """Writes a file of the named architecture; its tensors have shapes but take no room."""

    def write(name):
        with torch.device("meta"):
            shapes = CLIP(**ARCHITECTURES[name]).state_dict()
        path = tmp_path / "weights.pt"
        torch.save({key: torch.zeros(()).expand(value.shape) for key, value in shapes.items()}, path)
        return str(path)

    return write


@pytest.mark.parametrize(
    ("name", "held"), [("RN50", "ViT-B/16"), ("ViT-L/14", "ViT-L/14@336px"), ("ViT-B/32", "RN101")]
)
def test_a_file_of_another_named_model_is_refused(name, held, file_of):
    path = file_of(held)
    with pytest.raises(ValueError, match=f"{path}: this is {held}, but the backbone is named {name}"):
        load_backbone(name, path)


@pytest.mark.parametrize("sizes", [VIT, RESNET])
def test_a_file_of_other_sizes_goes_by_its_path(sizes, tmp_path):
    path = str(tmp_path / "small.pt")
    torch.save(random_state(sizes), path)
    with pytest.raises(ValueError, match=r"this is not RN50 \(.*embed_dim 32 instead of 1024.*by the path of the file"):
        load_backbone("RN50", path)
    assert load_backbone(path).embed_dim == 32


def test_the_carried_architecture_takes_other_weights(tmp_path):
    path = tmp_path / "mine.pt"
    torch.save(random_state(ARCHITECTURES["tiny-ViT"]), path)
    assert load_backbone("tiny-ViT", str(path)).digest != load_backbone("tiny-ViT").digest


def test_the_digest_is_of_the_weights_not_of_the_file(tmp_path):
    state = random_state(VIT)
    for file, write in WRITERS.items():
        write(state, tmp_path / file)
    digests = {load_backbone(str(tmp_path / file)).digest for file in WRITERS}
    assert len(digests) == 1
    for key in ("logit_scale", "visual.proj"):
        changed = {**state, key: state[key] + torch.eye(*state[key].shape) if state[key].ndim else state[key] + 1}
        torch.save(changed, tmp_path / "changed.pt")
        digests.add(load_backbone(str(tmp_path / "changed.pt")).digest)
    swapped = {**state, "ln_final.weight": state["ln_final.bias"], "ln_final.bias": state["ln_final.weight"]}
    torch.save(swapped, tmp_path / "swapped.pt")
    digests.add(load_backbone(str(tmp_path / "swapped.pt")).digest)
    assert len(digests) == 4


def test_the_digest_of_open_clip_s_models(tmp_path):
    reduced.register(tmp_path)
    model = reduced.random_model("reduced-EVA02")
    reduced.write_safetensors(model, tmp_path / "a.safetensors")
    reduced.write_training_checkpoint(model, tmp_path / "b.pt")
    a, b = (load_backbone("reduced-EVA02", str(tmp_path / file)) for file in ("a.safetensors", "b.pt"))
    assert a.digest == b.digest == weights_digest(model)


def test_the_digest_does_not_depend_on_the_precision():
    digests = {frozen_backbone("tiny-ViT", "", precision, CPU).digest for precision in ("fp32", "bf16")}
    assert digests == {load_backbone("tiny-ViT").digest}


@pytest.fixture
def call(eurosat_root, tmp_path, repo_root, capsys):
    """Run train.py on the weights file `tmp_path/weights.pt`; returns exit status and what it wrote to stderr."""

    def run(*args: str, out="run", opts=(), backbone=tmp_path / "weights.pt") -> tuple[int, str]:
        frozen_backbone.cache_clear()  # as in a new process
        argv = ["--root", str(eurosat_root), "--seed", "1", "--trainer", "CoOp", "--output-dir", str(tmp_path / out)]
        argv += ["--dataset-config-file", str(repo_root / "configs/datasets/eurosat.yaml"), *args]
        argv += ["--backbone", str(backbone), "TRAINER.COOP.N_CTX", "2", "OPTIM.MAX_EPOCH", "2"]
        argv += ["DATALOADER.NUM_WORKERS", "0", "DATASET.NUM_SHOTS", "2", "TRAIN.CHECKPOINT_FREQ", "1", *opts]
        status = train.main(argv)
        return status, capsys.readouterr().err

    yield run
    frozen_backbone.cache_clear()


def test_what_was_trained_on_other_weights_is_refused(call, tmp_path):
    torch.save(random_state(VIT), tmp_path / "weights.pt")
    digest = load_backbone(str(tmp_path / "weights.pt")).digest
    assert call() == (0, "")
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["backbone_digest"] == digest
    folder = tmp_path / "run" / "prompt_learner"
    assert torch.load(folder / "model.pth.tar-2", weights_only=True)["backbone_digest"] == digest
    evaluate = ["--eval-only", "--model-dir", str(tmp_path / "run")]
    assert call(*evaluate, out="same") == (0, "")

    torch.save(random_state(VIT, seed=1), tmp_path / "weights.pt")
    other = load_backbone(str(tmp_path / "weights.pt")).digest
    sentence = f"was trained on other weights of {tmp_path / 'weights.pt'} (digest {digest[:12]}) than this run has "
    sentence += f"loaded (digest {other[:12]})"
    status, said = call(*evaluate, out="other")
    assert status == 2
    assert sentence in said
    (folder / "checkpoint").write_text("model.pth.tar-1\n")  # as if it had been interrupted
    status, said = call()
    assert status == 2
    assert sentence in said
    frozen_backbone.cache_clear()
    with pytest.raises(ValueError, match=re.escape(sentence)):
        predict.Predictor(str(tmp_path / "run"), opts=["MODEL.BACKBONE.NAME", str(tmp_path / "weights.pt")])


def test_a_checkpoint_that_does_not_say_its_weights_is_loaded(call, tmp_path):
    """Official checkpoints do not."""
    torch.save(random_state(VIT), tmp_path / "weights.pt")
    assert call() == (0, "")
    path = tmp_path / "run" / "prompt_learner" / "model.pth.tar-2"
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["backbone_digest"], checkpoint["digest"]
    torch.save(checkpoint, path)
    assert call("--eval-only", "--model-dir", str(tmp_path / "run"), out="again") == (0, "")


ARCHITECTURES_OF_ONE_FILE = {  # of open_clip's description: what no weight tells
    "activation": ("quick_gelu", lambda settings: settings["model_cfg"].update(quick_gelu=True)),
    "heads": ("vision_cfg.head_width", lambda settings: settings["model_cfg"]["vision_cfg"].update(head_width=64)),
    "mask": ("text_cfg.no_causal_mask", lambda settings: settings["model_cfg"]["text_cfg"].update(no_causal_mask=True)),
    "pooling": ("text_cfg.pool_type", lambda settings: settings["model_cfg"]["text_cfg"].update(pool_type="last")),
    "epsilon": (
        "text_cfg.norm_kwargs",
        lambda settings: settings["model_cfg"]["text_cfg"].update(norm_kwargs={"eps": 1e-3}),
    ),
    "image constants": ("input.PIXEL_MEAN", lambda settings: settings["preprocess_cfg"].update(mean=[0.5, 0.5, 0.5])),
    "image shape": ("input.RESIZE_MODE", lambda settings: settings["preprocess_cfg"].update(resize_mode="squash")),
}


@pytest.fixture(scope="module")
def trained_on_a_folder(tmp_path_factory, eurosat_root, repo_root):
    """A run on a `local-dir:` backbone: the folder of the backbone and that of the run."""
    folder, output = (tmp_path_factory.mktemp(name) for name in ("backbone", "output"))
    reduced.write_safetensors(reduced.random_model("reduced-ViT"), folder / "open_clip_model.safetensors")
    described = {"model_cfg": reduced.CONFIGS["reduced-ViT"], "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    argv = ["--root", str(eurosat_root), "--seed", "1", "--trainer", "CoOp", "--output-dir", str(output / "run")]
    argv += ["--dataset-config-file", str(repo_root / "configs/datasets/eurosat.yaml")]
    argv += ["--backbone", f"local-dir:{folder}", "TRAINER.COOP.N_CTX", "2", "OPTIM.MAX_EPOCH", "2"]
    argv += ["DATALOADER.NUM_WORKERS", "0", "DATASET.NUM_SHOTS", "2", "TRAIN.CHECKPOINT_FREQ", "1"]
    assert train.main(argv) == 0
    return folder, output / "run", argv


@pytest.mark.parametrize("change", ARCHITECTURES_OF_ONE_FILE)
def test_the_same_weights_in_another_architecture_are_refused(trained_on_a_folder, change, tmp_path, capsys):
    folder, run, argv = trained_on_a_folder
    key, alter = ARCHITECTURES_OF_ONE_FILE[change]
    settings = folder / "open_clip_config.json"
    before = settings.read_text()
    described = json.loads(before)
    alter(described)
    copy = shutil.copytree(run, tmp_path / "copy")
    evaluate = [*argv[:7], str(tmp_path / "out"), *argv[8:12], "--eval-only", "--model-dir", str(run), *argv[12:]]
    resume = [*argv[:7], str(copy), *argv[8:]]
    try:
        settings.write_text(json.dumps(described))
        for words, interrupted in ((evaluate, False), (resume, True)):
            if interrupted:
                (copy / "prompt_learner" / "checkpoint").write_text("model.pth.tar-1\n")
            frozen_backbone.cache_clear()
            assert train.main(words) == 2
            said = capsys.readouterr().err
            assert f"{key.removeprefix('input.')} " in said
            settings_differ = interrupted and "a run with other settings (INPUT." in said
            assert settings_differ or "was trained on the same weights of local-dir:" in said
            assert not (tmp_path / "out" / "metrics.json").exists()
        frozen_backbone.cache_clear()
        with pytest.raises(ValueError, match=r"in another architecture|INPUT\.\w+ is"):
            predict.Predictor(str(run), opts=["MODEL.BACKBONE.NAME", f"local-dir:{folder}"])
    finally:
        settings.write_text(before)
        frozen_backbone.cache_clear()
    assert train.main(evaluate) == 0
    frozen_backbone.cache_clear()


def test_records_and_checkpoints_say_the_architecture(trained_on_a_folder):
    folder, run, _ = trained_on_a_folder
    record = json.loads((run / "metrics.json").read_text())["backbone_architecture"]
    kept = torch.load(run / "prompt_learner" / "model.pth.tar-2", weights_only=True)["backbone_architecture"]
    assert record == kept == load_backbone(f"local-dir:{folder}").identity()["backbone_architecture"]
    assert record["vision_cfg"] == reduced.CONFIGS["reduced-ViT"]["vision_cfg"]
    own = load_backbone("tiny-ViT").identity()["backbone_architecture"]
    assert (own["activation"], own["image_heads"], own["text_mask"]) == ("quick_gelu", 2, "causal")


def test_a_checkpoint_that_does_not_say_its_architecture_is_loaded(trained_on_a_folder, tmp_path):
    folder, run, _ = trained_on_a_folder
    checkpoint = torch.load(run / "prompt_learner" / "model.pth.tar-2", weights_only=True)
    for key in ("backbone_architecture", "digest"):
        checkpoint.pop(key, None)
    torch.save(checkpoint, tmp_path / "old.pth.tar-2")
    frozen_backbone.cache_clear()
    assert predict.Predictor(tmp_path / "old.pth.tar-2", opts=["MODEL.BACKBONE.NAME", f"local-dir:{folder}"])
    frozen_backbone.cache_clear()

"""Which model a run uses is known: a name stands for one architecture, and a digest tells weights from others."""

import json
import re

import open_clip
import openclip_models as reduced
import pytest
import torch
from clip_models import RESNET, VIT, WRITERS, random_state

import predict
import train
from clip.backbone import weights_digest
from clip.clip import available_models
from clip.loading import load_backbone
from clip.model import ARCHITECTURES, CLIP
from clip.precision import HOST
from clip.weights import CARRIED_MODELS
from trainers.base import frozen_backbone

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
    digests = {frozen_backbone("tiny-ViT", "", precision, HOST).digest for precision in ("fp32", "bf16")}
    assert digests == {load_backbone("tiny-ViT").digest}


@pytest.fixture
def call(eurosat_root, tmp_path, repo_root, capsys):
    """Run train.py on the weights file `tmp_path/weights.pt`; returns exit status and what it wrote to stderr."""

    def run(*args: str, out="run", opts=()) -> tuple[int, str]:
        frozen_backbone.cache_clear()  # as in a new process
        argv = ["--root", str(eurosat_root), "--seed", "1", "--trainer", "CoOp", "--output-dir", str(tmp_path / out)]
        argv += ["--dataset-config-file", str(repo_root / "configs/datasets/eurosat.yaml"), *args]
        argv += ["--backbone", str(tmp_path / "weights.pt"), "TRAINER.COOP.N_CTX", "2", "OPTIM.MAX_EPOCH", "2"]
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
    del checkpoint["backbone_digest"]
    torch.save(checkpoint, path)
    assert call("--eval-only", "--model-dir", str(tmp_path / "run"), out="again") == (0, "")

"""train.py from the command line: runs on a small CLIP, and the sentences that mistakes are answered with."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from dataset_trees import put_images
from parity import make_trainer, trainer_config

import train
from clip.backbone import Backbone
from clip.clip import tokenize
from clip.model import CLIP

ROOT = Path(__file__).resolve().parents[2]
APEX = ROOT / "configs/trainers/APEX/vit_b16_c2_ep15_batch16_2+2ctx.yaml"
EUROSAT = ROOT / "configs/datasets/eurosat.yaml"


@pytest.fixture
def call(small_weights, eurosat_root, tmp_path, capsys):
    """Run train.py in this process with small defaults; returns exit status and what it wrote to stderr."""

    def run(*args: str, trainer="APEX", out="run", backbone=None, opts=(), root=None, seed="1") -> tuple[int, str]:
        argv = ["--root", str(root or eurosat_root), *(["--seed", seed] if seed else []), "--trainer", trainer]
        argv += ["--dataset-config-file", str(EUROSAT), "--backbone", str(backbone or small_weights)]
        argv += ["--output-dir", str(tmp_path / out), *args]
        argv += ["DATALOADER.NUM_WORKERS", "0", "OPTIM.MAX_EPOCH", "2", "DATALOADER.TRAIN_X.BATCH_SIZE", "4"]
        argv += ["DATASET.NUM_SHOTS", "2", "DATASET.SUBSAMPLE_CLASSES", "base", *opts]
        status = train.main(argv)
        return status, capsys.readouterr().err

    return run


def metrics(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def test_train_then_evaluate(call, tmp_path):
    assert call("--config-file", str(APEX)) == (0, "")
    trained = metrics(tmp_path / "run")
    assert (tmp_path / "run" / "log.txt").read_text().count("* accuracy:") == 1
    path = tmp_path / "run" / "VLPromptLearner" / "model.pth.tar-2"
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["classnames"] == ["Annual Crop Land", "Forest"]
    assert checkpoint["config"]["TRAINER"]["APEX"]["BETA"] == 4.0
    assert {"prompt_learner.ctx", "image_encoder.VPT", "VPT_adapter_text_matrix"} <= set(checkpoint["state_dict"])

    model_dir = ["--eval-only", "--model-dir", str(tmp_path / "run"), "--config-file", str(APEX)]
    assert call(*model_dir, out="again") == (0, "")
    again = metrics(tmp_path / "again")
    assert [again[k] for k in ("accuracy", "macro_f1")] == [trained[k] for k in ("accuracy", "macro_f1")]
    assert call(*model_dir, out="new", opts=["DATASET.SUBSAMPLE_CLASSES", "new"]) == (0, "")
    new = metrics(tmp_path / "new")
    assert new["apex"]["classnames"] == ["Sea or Lake"]
    assert trained["apex"]["alpha"] == [1.0, 1.0]  # seen in training


def test_zero_shot_needs_no_checkpoint(call, tmp_path):
    assert call("--eval-only", trainer="ZeroshotCLIP", opts=["TRAINER.ZEROSHOTCLIP.PREC", "fp32"]) == (0, "")
    assert metrics(tmp_path / "run")["trainable_parameters"] == 0


def test_coop_trains_class_specific_contexts(call, tmp_path):
    opts = ["TRAINER.COOP.CSC", "True", "TRAINER.COOP.CLASS_TOKEN_POSITION", "middle", "TRAINER.COOP.N_CTX", "4"]
    assert call(trainer="CoOp", opts=opts) == (0, "")
    assert metrics(tmp_path / "run")["trainable_parameters"] == 2 * 4 * 64
    status, said = call("--eval-only", "--model-dir", str(tmp_path / "run"), trainer="CoOp", out="new",
                        opts=[*opts, "DATASET.SUBSAMPLE_CLASSES", "new"])  # fmt: skip
    assert status == 2
    assert "belongs to its classes" in said


@pytest.mark.parametrize("empty", ["None", "", "''"])
def test_no_words_to_start_from_are_random_contexts(call, tmp_path, empty):
    assert call(trainer="CoOp", out="usual") == (0, "")
    assert call(trainer="CoOp", out="none", opts=["TRAINER.COOP.CTX_INIT", empty]) == (0, "")
    usual, none = (metrics(tmp_path / out) for out in ("usual", "none"))
    assert none["trainable_parameters"] == usual["trainable_parameters"] == 16 * 64
    assert none["config"]["TRAINER"]["COOP"]["CTX_INIT"] == ""
    assert none["history"] == usual["history"]


def test_training_transforms_keep_the_normalisation(call, tmp_path, heard, caplog):
    assert call("--transforms", "random_flip", trainer="ZeroshotCLIP") == (0, "")
    assert metrics(tmp_path / "run")["config"]["INPUT"]["TRANSFORMS"] == ["random_flip", "normalize"]
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count("+ normalization") == 2
    assert "has no normalize" not in log
    opts = ["INPUT.TRANSFORMS", "['random_flip']"]
    assert call(trainer="ZeroshotCLIP", out="bare", opts=opts) == (0, "")
    assert "INPUT.TRANSFORMS ('random_flip',) has no normalize" in (tmp_path / "bare" / "log.txt").read_text()


def test_resuming_equals_an_uninterrupted_run(call, tmp_path):
    every = ["TRAIN.CHECKPOINT_FREQ", "1", "OPTIM.LR", "0.1"]
    assert call(out="whole", opts=every)[0] == 0
    folder = tmp_path / "cut" / "VLPromptLearner"
    folder.mkdir(parents=True)
    name = "model.pth.tar-1"  # as if the run had been stopped after its first epoch
    (folder / name).write_bytes((tmp_path / "whole" / "VLPromptLearner" / name).read_bytes())
    (folder / "checkpoint").write_text(f"{name}\n")
    assert call(out="cut", opts=every)[0] == 0
    whole, cut = (torch.load(tmp_path / run / "VLPromptLearner" / "model.pth.tar-2", weights_only=True)["state_dict"]
                  for run in ("whole", "cut"))  # fmt: skip
    assert all(torch.equal(whole[key], cut[key]) for key in whole)


@pytest.mark.parametrize("how", ["training", "evaluation", "seeds"])
def test_a_folder_that_another_process_works_in_is_left_alone(call, tmp_path, how):
    folder = tmp_path / ("run/seed1" if how == "seeds" else "run")
    code = "import sys\nfrom dassl.utils.locks import run_lock\nwith run_lock(sys.argv[1]): print(flush=True), input()"
    line = [sys.executable, "-c", code, str(folder)]
    with subprocess.Popen(line, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "\n"
        more = {"training": [], "evaluation": ["--eval-only"], "seeds": ["--seeds", "1"]}[how]
        status, said = call(*more, trainer="ZeroshotCLIP", seed=None if how == "seeds" else "1")
        other.stdin.close()
    assert status == 73
    assert re.fullmatch(rf"train.py: .*run.* is in use by process {other.pid} on .* since .*folder\n", said)
    assert [path.name for path in folder.iterdir()] == [".lock"]


def test_stacked_seeds_equal_separate_runs(call, tmp_path):
    opts = ["OPTIM.LR", "0.1"]
    assert call("--config-file", str(APEX), "--seeds", "1-3", out="stacked", opts=opts, seed=None) == (0, "")
    for seed in ("1", "2", "3"):
        assert call("--config-file", str(APEX), out=f"alone{seed}", opts=opts, seed=seed) == (0, "")
        folders = tmp_path / "stacked" / f"seed{seed}", tmp_path / f"alone{seed}"
        one, two = (torch.load(f / "VLPromptLearner" / "model.pth.tar-2", weights_only=True) for f in folders)
        for key, value in one["state_dict"].items():
            torch.testing.assert_close(value, two["state_dict"][key], rtol=1e-5, atol=1e-6)
        assert {**one["config"], "OUTPUT_DIR": ""} == {**two["config"], "OUTPUT_DIR": ""}
        one, two = (metrics(folder) for folder in folders)
        for key in ("accuracy", "per_class", "apex", "seed", "split_hash", "config_hash"):
            assert one[key] == two[key]
        assert [e["loss"] for e in one["history"]] == pytest.approx([e["loss"] for e in two["history"]], rel=1e-5)
        assert (folders[0] / "log.txt").read_text().count("Finished training") == 1


def test_a_failing_seed_leaves_the_others_whole(call, tmp_path):
    (tmp_path / "stacked").mkdir()
    (tmp_path / "stacked" / "seed2").write_text("a file where a folder must be")
    status, said = call("--seeds", "1,2,3", out="stacked", seed=None)
    assert status == 2
    assert "seed 2: " in said
    assert f"'{tmp_path / 'stacked' / 'seed2'}'" in said
    assert metrics(tmp_path / "stacked" / "seed3")["epoch"] == 2
    assert call("--seeds", "3-1", seed=None)[0] == 2


@pytest.mark.parametrize(
    ("trainer", "backbone", "opts", "expected"),
    [
        ("APXE", None, [], "APEX"),
        ("APEX", "ViT-B16", [], "did you mean 'ViT-B/16'"),
        ("APEX", None, ["DATASET.NAME", "EuroSAt"], "EuroSAT"),
        ("APEX", None, ["TRAINER.APEX.N_CTX_VISON", "2"], "N_CTX_VISION"),
        ("APEX", None, ["OPTIM.LR"], "KEY VALUE"),
        ("APEX", None, ["TRAINER.APEX.N_CTX_TEXT", "5"], "has only 4 words"),
        ("APEX", None, ["TRAINER.APEX.CTX_INIT", "a photo of a"], "no '#'"),
        ("APEX", None, ["TRAINER.APEX.PROMPT_DEPTH_TEXT", "0"], "PROMPT_DEPTH_TEXT is 0"),
        ("APEX", None, ["TRAINER.APEX.FROZEN_BRANCH", "plain"], "clip, official"),
        ("APEX", None, ["TRAINER.APEX.FIXED_ALPHA", "1.5"], "FIXED_ALPHA is 1.5"),
        ("APEX", None, ["TRAINER.APEX.PREC", "fp8"], "PREC is 'fp8'"),
        ("CoOp", None, ["TRAINER.COOP.N_CTX", "80"], "the context holds 77"),
        ("CoOp", None, ["TRAINER.COOP.CLASS_TOKEN_POSITION", "back"], "end, middle, front"),
        ("APEX", None, ["INPUT.SIZE", "(64, 64)"], "takes (32, 32)"),
        ("APEX", None, ["MODEL.BACKBONE.PATH", "nowhere/model.pt"], "no weights file at nowhere/model.pt"),
    ],
)
def test_mistakes_are_answered(call, trainer, backbone, opts, expected):
    status, said = call(trainer=trainer, backbone=backbone, opts=opts)
    assert status == 2
    assert expected in said
    assert "Traceback" not in said


def test_missing_root_is_named(call, tmp_path):
    status, said = call(root=tmp_path / "nowhere")
    assert status == 2
    assert str(tmp_path / "nowhere") in said


def test_damaged_image_is_named(small_weights, tmp_path, call):
    from dataset_trees import eurosat

    eurosat(tmp_path / "data")
    for image in (tmp_path / "data" / "eurosat" / "2750" / "AnnualCrop").iterdir():
        image.write_bytes(image.read_bytes()[:40])
    status, said = call(root=tmp_path / "data")
    assert status == 2
    assert "AnnualCrop" in said


def test_untrained_evaluation_is_refused(call, tmp_path):
    assert call("--eval-only")[0] == 2
    status, said = call("--eval-only", "--model-dir", str(tmp_path / "nothing"))
    assert status == 2
    assert "no checkpoint at" in said


def test_foreign_checkpoints_are_refused(call, tmp_path, small_weights):
    assert call()[0] == 0
    load = ["--eval-only", "--model-dir", str(tmp_path / "run")]
    status, said = call(*load, out="deep", opts=["TRAINER.APEX.PROMPT_DEPTH_VISION", "2"])
    assert status == 2
    assert "without a place here: image_encoder.transformer.resblocks.2.VPT_shallow" in said
    status, said = call(*load, out="wide", opts=["TRAINER.APEX.N_CTX_TEXT", "3"])
    assert status == 2
    assert "prompt_learner.ctx (2, 64) instead of (3, 64)" in said
    status, said = call(*load, "--load-epoch", "7", out="epoch")
    assert status == 2
    assert "model.pth.tar-2" in said
    torch.manual_seed(1)
    other = tmp_path / "other.pt"
    torch.save(CLIP(64, 32, 3, 64, 8, 77, 49408, 64, 1, 2).state_dict(), other)
    status, said = call(*load, out="other", backbone=other)
    assert status == 2
    assert "backbone" in said
    (tmp_path / "run" / "prompt_learner").mkdir()
    for file in (tmp_path / "run" / "VLPromptLearner").iterdir():
        (tmp_path / "run" / "prompt_learner" / file.name).write_bytes(file.read_bytes())
    status, said = call(*load, trainer="CoOp", out="coop")
    assert status == 2
    assert "'APEX'" in said


def test_official_whole_model_checkpoint(call, tmp_path):
    """The learned part is taken from a checkpoint that holds two whole CLIPs and no class names."""
    assert call()[0] == 0
    path = tmp_path / "run" / "VLPromptLearner" / "model.pth.tar-2"
    ours = torch.load(path, weights_only=True)
    state = {**ours["state_dict"], "image_encoder.conv1.weight": torch.zeros(64, 3, 8, 8)}
    state["clip_model_temp.visual.VPT"] = torch.ones(2, 64)
    state["prompt_learner.token_prefix"] = torch.zeros(2, 1, 64)
    official = tmp_path / "official" / "VLPromptLearner"
    official.mkdir(parents=True)
    torch.save({"state_dict": state, "epoch": 2, "optimizer": None}, official / "model.pth.tar-2")
    load = ["--eval-only", "--load-epoch", "2", "--model-dir", str(tmp_path / "official")]
    assert call(*load, out="loaded") == (0, "")
    assert metrics(tmp_path / "loaded")["accuracy"] == metrics(tmp_path / "run")["accuracy"]
    status, said = call(*load, out="branch", opts=["TRAINER.APEX.FROZEN_BRANCH", "official"])
    assert status == 2  # only the first block's frozen tokens are there
    assert "clip_model_temp.visual.transformer.resblocks.1.VPT_shallow" in said


def test_checkpoint_of_apex_on_vit_b16_is_small(tmp_path):
    """State and optimiser of APEX at the sizes of ViT-B/16; only what is looked up has real weights."""
    with torch.device("meta"):
        model = CLIP(512, 224, 12, 768, 16, 77, 49408, 512, 8, 12)
    model.token_embedding = torch.nn.Embedding(49408, 512)
    model.logit_scale = torch.nn.Parameter(torch.zeros(()))
    backbone = Backbone("ViT-B/16", model, model.visual.tower(), model.text_tower(), tokenize)
    cfg = trainer_config("APEX", {"NAME": "adadelta"}, {"PREC": "fp32"}, tmp_path)
    trainer = make_trainer(cfg, backbone, [f"class {i}" for i in range(100)], [])
    for parameter in trainer.model.parameters():
        parameter.grad = torch.rand_like(parameter)
    trainer.optim.step()
    trainer.save_model(0, str(tmp_path))
    path = tmp_path / "VLPromptLearner" / "model.pth.tar-1"
    assert sum(p.numel() for p in trainer.model.parameters()) == 282_112
    assert path.stat().st_size < 4e6
    assert len(torch.load(path, weights_only=True)["optimizer"]["state"]) == 15


@pytest.fixture
def own_data(tmp_path) -> Path:
    """A root with a data set of one's own in three class folders, and its YAML file."""
    for name in ("boat", "horse", "tree"):
        put_images(tmp_path / "data" / "mine" / name, [f"{name}{number}.jpg" for number in range(8)])
    (tmp_path / "data" / "mine.yaml").write_text("DATASET:\n  NAME: OwnData\n  FOLDER: mine\n")
    return tmp_path / "data"


def rename_class(root: Path) -> None:
    (root / "mine" / "horse").rename(root / "mine" / "zebra")  # which moves the labels behind it by one
    (root / "mine" / "split.json").unlink()


def exchange_training_pictures(root: Path) -> None:
    rows = json.loads((root / "mine" / "split.json").read_text())["train"]
    first, last = (root / "mine" / rows[index][0] for index in (0, -1))
    before = [first.read_bytes(), last.read_bytes()]
    first.write_bytes(before[1])
    last.write_bytes(before[0])


def another_split(root: Path) -> None:
    path = root / "mine" / "split.json"
    content = json.loads(path.read_text())
    content["train"][0], content["test"][0] = content["test"][0], content["train"][0]
    path.write_text(json.dumps(content))


CHANGES = {
    "class": (rename_class, "3 classes, now 3; label 1 was 'horse' and is 'tree'"),
    "pictures": (exchange_training_pictures, "the content of training images has changed"),
    "split": (another_split, "the list of training images has changed"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_is_not_resumed_on_other_data(call, own_data, tmp_path, change):
    all_images = ["DATASET.SUBSAMPLE_CLASSES", "all", "DATASET.NUM_SHOTS", "-1", "TRAIN.CHECKPOINT_FREQ", "1"]
    line = {"trainer": "CoOp", "root": own_data, "backbone": "tiny-ViT", "opts": all_images}
    flags = ["--dataset-config-file", str(own_data / "mine.yaml")]
    assert call(*flags, **line) == (0, "")
    result = metrics(tmp_path / "run")
    folder = tmp_path / "run" / "prompt_learner"
    (folder / "model.pth.tar-2").unlink()  # interrupted after the first epoch
    (folder / "checkpoint").write_text("model.pth.tar-1\n")
    alter, reason = CHANGES[change]
    alter(own_data)
    status, said = call(*flags, **line)
    assert status == 2
    assert "was trained on other data" in said
    assert reason in said
    assert metrics(tmp_path / "run") == result


def test_a_folder_of_another_run_is_not_resumed(call, tmp_path):
    assert call()[0] == 0
    for opts, named in ((["OPTIM.LR", "0.3"], "OPTIM.LR"), (["OPTIM.MAX_EPOCH", "4"], "OPTIM.MAX_EPOCH 2 -> 4")):
        status, said = call(opts=opts)
        assert status == 2
        assert "holds a run with other settings" in said
        assert named in said
    assert metrics(tmp_path / "run")["epoch"] == 2
    assert call() == (0, "")  # the same settings: complete, evaluated again


@pytest.mark.parametrize(
    ("args", "opts", "expected"),
    [
        ([], ["OPTIM.MAX_EPOCH", "0"], "MAX_EPOCH is 0"),
        ([], ["TEST.FINAL_MODEL", "best"], "FINAL_MODEL is 'best'"),
        ([], ["TRAINER.APEX.BETA", "-1.0"], "BETA -1.0"),
        (["--seeds", "1-2"], [], "exclude each other"),
        (["--load-epoch", "2"], [], "--load-epoch 2"),
        (["--load-epoch", "0", "--model-dir", "somewhere"], [], "epochs are counted from 1"),
        (["--resume", "nowhere"], [], "--resume nowhere: there is no such folder"),
        (["--output-dir", __file__], [], "is a file"),
        ([], ["--eval-only", "1"], "--eval-only stands among the KEY VALUE pairs"),
        ([], ["INPUT.SIZE", "(32,)"], "INPUT.SIZE is (32,)"),
        ([], ["INPUT.NO_TRANSFORM", "True"], "INPUT.NO_TRANSFORM (True)"),
        ([], ["DATALOADER.K_TRANSFORMS", "2"], "K_TRANSFORMS (2)"),
        ([], ["OPTIM.LR", "-1"], "OPTIM.LR is -1.0, but must be at least 0"),
        ([], ["DATALOADER.TEST.BATCH_SIZE", "0"], "BATCH_SIZE is 0, but must be at least 1"),
        ([], ["SEED", "-5"], "SEED is -5"),
        ([], ["DATASET.NUM_SHOTS", "-4"], "NUM_SHOTS is -4, but must be at least -1"),
        ([], ["INPUT.RRCROP_SCALE", "(0.5,)"], "RRCROP_SCALE is (0.5,), but must be two parts"),
        ([], ["INPUT.RRCROP_SCALE", "('a', 'b')"], "but must be two parts"),
        ([], ["INPUT.RRCROP_SCALE", "(1.5, 2)"], "RRCROP_SCALE is (1.5, 2), but must be two parts"),
    ],
)
def test_contradictions_are_answered(call, args, opts, expected):
    status, said = call(*args, opts=opts)
    assert status == 2
    assert expected in said


def test_other_settings_than_in_training_are_said(call, tmp_path):
    assert call()[0] == 0
    load = ["--eval-only", "--model-dir", str(tmp_path / "run")]
    assert call(*load, out="again")[0] == 0
    assert "other settings" not in (tmp_path / "again/log.txt").read_text()
    assert call(*load, out="other", opts=["TRAINER.APEX.CTX_INIT", "a drawing of a #."])[0] == 0
    assert "TRAINER.APEX.CTX_INIT 'a photo of a #.' -> 'a drawing of a #.'" in (tmp_path / "other/log.txt").read_text()


def test_an_evaluation_does_not_overwrite_the_result_of_another_run(call, tmp_path):
    assert call()[0] == 0
    load = ["--eval-only", "--model-dir", str(tmp_path / "run")]
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    status, said = call(*load, opts=["DATASET.SUBSAMPLE_CLASSES", "new"])
    assert status == 2
    assert "metrics.json is the result of a training, which this evaluation would overwrite" in said
    assert {path: path.read_bytes() for path in before} == before
    assert call(*load, out="new", opts=["DATASET.SUBSAMPLE_CLASSES", "new"])[0] == 0
    assert call(*load, out="new", opts=["DATASET.SUBSAMPLE_CLASSES", "new"])[0] == 0, "the same again"
    status, said = call(*load, out="new")
    assert status == 2
    assert "an evaluation with other settings (DATASET.SUBSAMPLE_CLASSES 'new' -> 'base')" in said
    assert metrics(tmp_path / "new")["subsample_classes"] == "new"


def test_what_a_run_starts_from_must_fit(call, tmp_path):
    start = tmp_path / "start.pth"
    for content, expected in (({"a": 1}, f"MODEL.INIT_WEIGHTS {start}: "), ([1], "it holds a list")):
        torch.save(content, start)
        status, said = call(opts=["MODEL.INIT_WEIGHTS", str(start)])
        assert status == 2
        assert expected in said


def test_a_seen_class_is_at_no_distance_from_itself(call, tmp_path):
    """Rounding must not make classes of the training unseen, whatever the limit."""
    assert call(opts=["TRAINER.APEX.EPS", "0"])[0] == 0
    apex = metrics(tmp_path / "run")["apex"]
    assert apex["d_nn"] == [0.0, 0.0]
    assert apex["alpha"] == [1.0, 1.0]


def test_a_class_just_trained_on_is_seen_whatever_came_before(call, tmp_path):
    assert call()[0] == 0
    start = str(tmp_path / "run" / "VLPromptLearner" / "model.pth.tar-2")
    assert call(out="next", opts=["MODEL.INIT_WEIGHTS", start, "DATASET.SUBSAMPLE_CLASSES", "new"])[0] == 0
    assert metrics(tmp_path / "next")["apex"]["alpha"] == [1.0]


def test_an_unreadable_image_is_named_by_workers_too(tmp_path, call):
    from dataset_trees import eurosat

    eurosat(tmp_path / "data")
    for image in (tmp_path / "data" / "eurosat" / "2750" / "AnnualCrop").iterdir():
        image.write_bytes(image.read_bytes()[:40])
    status, said = call(root=tmp_path / "data", opts=["DATALOADER.NUM_WORKERS", "1"])
    assert status == 2
    assert "AnnualCrop" in said
    assert "Traceback" not in said

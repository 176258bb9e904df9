"""Every script in scripts/: what it hands to the sweep, and that the sweep understands it (dry run)."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from sweep import cli

ROOT = Path(__file__).resolve().parents[2]
ENTRY = {"env.sh", "quickstart.sh", "test.sh"}  # set-up; they are run as they are
SCRIPTS = sorted(
    path.relative_to(ROOT / "scripts").as_posix()
    for path in (ROOT / "scripts").rglob("*.sh")
    if path.name not in ENTRY and "dev" not in path.parts
)
ARGUMENTS = {
    "apex/xd_train_apex.sh": "imagenet 1",
    "apex/xd_test_all.sh": "1",
    "cocoop/xd_train.sh": "1",
    "coop/main.sh": "caltech101 rn50_ep50 middle 16 2 False",
    "coop/eval.sh": "imagenetv2 rn50_ep50",
    "zsclip/zeroshot.sh": "dtd vit_b32",
    "reproduce.sh": "apex base2new",
    **{
        f"{folder}/xd_train_{suffix}.sh": "imagenet 1"
        for folder, suffix in (
            ("maple", "maple"),
            ("vpt", "vpt"),
            ("independent-vlp", "ivlp"),
            ("language-prompting", "lp"),
        )
    },
}


@pytest.fixture
def recorded(tmp_path):
    """Run a script with an interpreter that only writes down its arguments; returns these."""
    recorder, record = tmp_path / "python", tmp_path / "arguments"
    recorder.write_text(f'#!/bin/sh\nprintf "%s\\n" "$PWD" "$@" > {shlex.quote(str(record))}\n')
    recorder.chmod(0o755)

    def run(line: str) -> list[str]:
        words = [str(ROOT / "scripts" / line.split()[0]), *line.split()[1:]]
        subprocess.run(words, env={**os.environ, "PYTHON": str(recorder)}, cwd=tmp_path, check=True)
        folder, *arguments = record.read_text().splitlines()
        assert folder == str(ROOT)
        assert arguments[:2] == ["-m", "sweep"]
        return arguments[2:]

    return run


def _line(script: str) -> str:
    return f"{script} {ARGUMENTS.get(script, 'caltech101' if '_avg' in script else 'caltech101 1')}"


@pytest.mark.parametrize("script", SCRIPTS)
def test_dry_run(script, recorded, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    words = recorded(f"{_line(script)} --dry-run --jobs 1 --output {tmp_path / 'out'}")
    assert cli.main(words) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert "runs to do" in out
    assert " 0 runs to do" not in out
    assert not (tmp_path / "out").exists()


def _dry(recorded, line: str, capsys) -> list[str]:
    """Lines of train.py that a script stands for."""
    words = recorded(f"{line} --dry-run --jobs 1")
    assert cli.main(words) == 0, capsys.readouterr().err
    return [text for text in capsys.readouterr().out.splitlines() if text.startswith("python train.py")]


@pytest.mark.parametrize(
    ("line", "count", "expected"),
    [
        (
            "apex/base_train_avg.sh dtd",
            20,
            "output/base2new/train_base/dtd/shots_16/APEX/vit_b16_c2_ep15_batch16_2+2ctx/seed20",
        ),
        (
            "apex/base_test_avg_imagenet.sh imagenet",
            20,
            "output/base2new/test_new/imagenet/shots_16/APEX/vit_b16_c2_ep5_batch16_2+2ctx_imagenet/seed1",
        ),
        ("apex/xd_train_apex.sh imagenet 3", 1, "output/imagenet/APEX/cross_eval_16shots/seed3"),
        ("apex/xd_test_apex.sh dtd 3", 1, "output/evaluation/APEX/cross_eval_16shots/dtd/seed3"),
        ("apex/xd_test_all.sh 1", 14, "output/evaluation/APEX/cross_eval_16shots/imagenet_r/seed1"),
        (
            "coop/main.sh dtd rn50_ep50 middle 4 1 True",
            3,
            "output/dtd/CoOp/rn50_ep50_1shots/nctx4_cscTrue_ctpmiddle/seed2",
        ),
        (
            "coop/eval.sh imagenetv2 rn50_ep50",
            3,
            "output/evaluation/CoOp/rn50_ep50_16shots/nctx16_cscFalse_ctpend/imagenetv2/seed2",
        ),
        ("zsclip/zeroshot.sh dtd vit_b16", 1, "output/ZeroshotCLIP/vit_b16/dtd"),
        ("zsclip/zeroshot.sh 0 rn50", 1, "output/ZeroshotCLIP/rn50/imagenet"),
        ("zsclip/zeroshot.sh drawn_easy tiny_vit", 1, "output/ZeroshotCLIP/tiny_vit/drawn_easy"),
        (
            "maple/base2new_train_maple.sh dtd 2",
            1,
            "output/base2new/train_base/dtd/shots_16/MaPLe/vit_b16_c2_ep5_batch4_2ctx/seed2",
        ),
        ("cocoop/xd_train.sh 2", 1, "output/imagenet/CoCoOp/vit_b16_c4_ep10_batch1_ctxv1_16shots/seed2"),
        ("reproduce.sh apex base2new", 440, "output/base2new/test_new/sun397/"),
    ],
)
def test_official_directories(line, count, expected, recorded, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    lines = _dry(recorded, line, capsys)
    assert len(lines) == count
    assert any(f"--output-dir {expected}" in text for text in lines)


def test_settings_of_coop_reach_the_configuration(recorded, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    line = _dry(recorded, "coop/main.sh dtd rn50_ep50 middle 4 1 True", capsys)[0]
    assert "DATASET.NUM_SHOTS 1 " in line
    assert line.endswith("TRAINER.COOP.N_CTX 4 TRAINER.COOP.CSC True TRAINER.COOP.CLASS_TOKEN_POSITION middle")


def test_data_names_the_folder_of_the_data_sets(recorded, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert "--root ../datasets " in _dry(recorded, "cocoop/xd_train.sh 1", capsys)[0]
    monkeypatch.setenv("DATA", "/elsewhere")
    assert "--root /elsewhere " in _dry(recorded, "cocoop/xd_train.sh 1", capsys)[0]


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_thin(script):
    path = ROOT / "scripts" / script
    lines = path.read_text().splitlines()
    assert os.access(path, os.X_OK)
    assert lines[0] == "#!/usr/bin/env bash"
    code = "\n".join(line for line in lines if not line.startswith("#"))
    assert not any(word in code.split() for word in ("if", "for", "while", "case", "function", "rm"))


def test_zero_shot_without_a_configuration(recorded):
    assert recorded("zsclip/zeroshot.sh drawn_easy") == [
        "zeroshot",
        "--trainers",
        "ZeroshotCLIP",
        "--datasets",
        "drawn_easy",
    ]


def test_a_missing_argument_is_named(tmp_path):
    done = subprocess.run([ROOT / "scripts/apex/base_train_avg.sh"], capture_output=True, text=True)
    assert done.returncode != 0
    assert "DATASET" in done.stderr


def test_what_scripts_load_is_the_last_epoch_that_configurations_write():
    import train

    epochs = {
        "APEX/vit_b16_c2_ep15_batch16_2+2ctx": 15,
        "APEX/vit_b16_c2_ep5_batch16_2+2ctx_imagenet": 5,
        "APEX/cross_eval": 6,
        "CoOp/rn50_ep50": 50,
        "CoCoOp/vit_b16_c4_ep10_batch1_ctxv1": 10,
        "MaPLe/vit_b16_c2_ep5_batch4_2ctx": 5,
        "MaPLe/vit_b16_c2_ep5_batch4_2ctx_cross_datasets": 2,
        "VPT/vit_b16_c2_ep5_batch4_4": 5,
        "IVLP/vit_b16_c2_ep5_batch4_2+2ctx": 5,
        "IVLP/vit_b16_c2_ep5_batch4_4ctx_language_only": 5,
    }
    for name, epoch in epochs.items():
        path = ROOT / f"configs/trainers/{name}.yaml"
        args = train.build_parser().parse_args(["--trainer", name.split("/")[0], "--config-file", str(path)])
        assert epoch == train.build_config(args).OPTIM.MAX_EPOCH, name

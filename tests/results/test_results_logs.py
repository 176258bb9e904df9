"""parse_test_res.py on logs: both end lines, one or two decimals, damaged ones, and its exit status."""

import subprocess
import sys

import pytest

from results import cli
from results.formats import FORMATS
from results.logs import END_OF_TEST, END_OF_TRAINING, read_experiment, read_log

RESULT = "=> result\n* total: 1,000\n* correct: 820\n* accuracy: {}%\n* error: 18.0%\n* macro_f1: {}%\n"


def _log(folder, accuracy="82.0", end="Finish training", f1="81.5", before="* accuracy: 3.0%\n", name="log.txt"):
    """A training log: a validation result, the end line, the last result."""
    folder.mkdir(parents=True, exist_ok=True)
    end = f"{end}\nDeploy the last-epoch model\n" if end else ""
    text = f"epoch [1/1] batch [1/1]\n{before}{end}{RESULT.format(accuracy, f1)}Elapsed: 0:00:01\n"
    (folder / name).write_text(text)


def test_both_end_lines_and_any_decimals(tmp_path, capsys):
    _log(tmp_path / "seed1", "80.0", "Finish training")
    _log(tmp_path / "seed2", "82.25", "Finished training")
    _log(tmp_path / "seed10", "84.125", "Finish training\nFinished training")
    assert cli.main([str(tmp_path)]) == 1, "seeds 3-9 are missing"
    lines = capsys.readouterr().out.splitlines()
    shown = [line for line in lines if line.startswith("file: ")]
    assert [line.rsplit(". ", 1)[1] for line in shown] == [
        "accuracy: 80.00%",
        "accuracy: 82.25%",
        "accuracy: 84.12%",
    ]
    assert "missing: seeds 3-9" in lines
    assert "* accuracy: 82.12% +- 1.69%" in lines


def test_the_log_of_another_seed_is_not_averaged(tmp_path, capsys):
    for folder, seed, accuracy in (
        ("seed1", 1, "80.0"),
        ("seed2", 2, "82.0"),
        ("seed3", 1, "60.0"),
        ("seed_4", 4, "84.0"),
    ):
        _log(tmp_path / folder, accuracy)
        path = tmp_path / folder / "log.txt"
        path.write_text(f"seed: {seed}\nOUTPUT_DIR: out\nSEED: {seed}\n{path.read_text()}")
    assert cli.main([str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert f"file: {tmp_path / 'seed3/log.txt'}. it is of seed 1, not of the 3 in the name of its folder" in lines
    assert "* accuracy: 82.00% +- 1.63%" in lines


def test_ci95_keeps_its_meaning(tmp_path, capsys):
    _log(tmp_path / "seed1", "80.0")
    _log(tmp_path / "seed2", "82.0")
    assert cli.main([str(tmp_path), "--ci95"]) == 0
    assert "* accuracy: 81.00% +- 1.39%" in capsys.readouterr().out


def test_the_end_line_must_stand_alone_and_before(tmp_path):
    _log(tmp_path, end="")
    assert read_log(tmp_path / "log.txt", "accuracy", END_OF_TRAINING)[0] is None
    assert read_log(tmp_path / "log.txt", "accuracy", END_OF_TEST) == (82.0, "")
    _log(tmp_path, end="now: Finish training soon")
    assert read_log(tmp_path / "log.txt", "accuracy", END_OF_TRAINING)[0] is None


def test_last_match_wins_and_other_keywords(tmp_path):
    _log(tmp_path, "1e1")
    path = tmp_path / "log.txt"
    path.write_text(path.read_text() + "* accuracy: 55.5%\n")
    assert read_log(path, "accuracy", END_OF_TRAINING) == (55.5, "")
    assert read_log(path, "macro_f1", END_OF_TRAINING) == (81.5, "")
    assert "nothing about 'recall'" in read_log(path, "recall", END_OF_TRAINING)[1]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "did not finish"),
        (b"epoch [1/50]\n\xff\xfe\x00 broken", "did not finish"),
        (b"Finish training\n* accuracy: 1.2.3%\n", "holds no percentage"),
        (b"Finish training\n* accuracy: nan%\n", "holds no percentage"),
        (b"Finish training\n* accuracy: -5%\n", "holds no percentage"),
        (b"Finish training\n* accuracy: 10000%\n", "holds no percentage"),
        (b"Finish training\nkilled", "nothing about"),
    ],
)
def test_damaged_logs_are_named(tmp_path, capsys, content, named):
    _log(tmp_path / "seed1", "80.0")
    (tmp_path / "seed2").mkdir()
    (tmp_path / "seed2" / "log.txt").write_bytes(content)
    assert cli.main([str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert f"{tmp_path}/seed2/log.txt" in out
    assert named in out
    assert "* accuracy: 80.00% +- 0.00%" in out


def test_stray_files_and_empty_folders_are_tolerated(tmp_path, capsys):
    _log(tmp_path / "seed1", "80.0")
    (tmp_path / "average_results.txt").write_text("Average Accuracy: 80%")
    (tmp_path / ".cache").mkdir()
    assert cli.main([str(tmp_path)]) == 0
    (tmp_path / "seed2").mkdir()
    assert cli.main([str(tmp_path)]) == 1
    assert "no log.txt" in capsys.readouterr().out


def test_a_second_log_counts_where_the_first_did_not_finish(tmp_path):
    _log(tmp_path / "seed1", "70.0", end="")
    _log(tmp_path / "seed1", "80.0", name="log.txt-2024-01-01-00-00-00")
    experiment = read_experiment(tmp_path, "accuracy", END_OF_TRAINING)
    assert experiment.values == [80.0]


def test_expected_seeds_are_missing_when_they_are_not_there(tmp_path):
    _log(tmp_path / "seed2", "80.0")
    assert read_experiment(tmp_path, "accuracy", END_OF_TRAINING, (1, 2, 3)).missing == [1, 3]


def test_what_is_no_seed_beside_seeds_is_named_and_not_averaged(tmp_path, capsys):
    _log(tmp_path / "seed1", "80.0")
    _log(tmp_path / "seed2", "82.0")
    for stray in ("seed1_old", "seed_2", "backup"):
        _log(tmp_path / stray, "10.0")
    (tmp_path / "tensorboard").mkdir()
    assert cli.main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "* accuracy: 81.00% +- 1.00%" in out
    for stray in ("seed1_old", "seed_2", "backup"):
        assert f"left out: {tmp_path / stray}: it is not the folder of a seed" in out
    assert "tensorboard" not in out
    assert cli.main([str(tmp_path), "--format", "markdown"]) == 0
    assert f"left out: {tmp_path / 'seed1_old'}" in capsys.readouterr().out


@pytest.mark.parametrize("evaluated", ["Evaluate on the *val* set\n", "Do evaluation on val set\n"])
@pytest.mark.parametrize("signals", [END_OF_TEST, END_OF_TRAINING])
def test_a_validation_accuracy_is_no_result(tmp_path, signals, evaluated):
    validated = evaluated + RESULT.format("99.0", "99.0")
    begun = f"epoch [1/2] batch [1/1]\n{validated}"
    _write(tmp_path, begun)
    assert read_log(tmp_path / "log.txt", "accuracy", signals)[0] is None
    again = f"{begun}Finish training\nEvaluate on the *test* set\n{RESULT.format('70.0', '70.0')}{begun}"
    _write(tmp_path, again)  # trained on into the same log, and interrupted
    assert read_log(tmp_path / "log.txt", "accuracy", signals)[0] is None
    _write(tmp_path, f"{again}Finish training\nEvaluate on the *test* set\n{RESULT.format('71.0', '70.0')}")
    assert read_log(tmp_path / "log.txt", "accuracy", signals) == (71.0, "")


def _write(folder, text):
    (folder / "log.txt").write_text(text)


def test_folders_of_any_name_and_a_log_in_the_folder_itself(tmp_path):
    _log(tmp_path / "a" / "run_x", "80.0")
    _log(tmp_path / "b", "60.0")
    assert read_experiment(tmp_path / "a", "accuracy", END_OF_TRAINING).values == [80.0]
    assert read_experiment(tmp_path / "b", "accuracy", END_OF_TRAINING).values == [60.0]


def test_several_experiments(tmp_path, capsys):
    for i, name in enumerate(("dtd", "eurosat")):
        _log(tmp_path / name / "seed1", f"{80 + i}.0", end="")
        _log(tmp_path / name / "seed2", f"{82 + i}.0", end="")
    assert cli.main([str(tmp_path), "--multi-exp", "--test-log"]) == 0
    out = capsys.readouterr().out
    assert out.count("* accuracy:") == 3
    assert out.rstrip().endswith("Average performance over 2 experiments\n* accuracy: 81.50%")
    assert cli.main([str(tmp_path), "--multi-exp", "--test-log", "--format", "csv"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == f"{tmp_path}/dtd,2,81.0,1.0"
    assert lines[-1] == "average of 2 experiments,,81.5,"


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_says_what_the_lines_say(tmp_path, capsys, form):
    _log(tmp_path / "dtd" / "seed1", "80.0", "Finish training")
    _log(tmp_path / "dtd" / "seed2", "82.0", "Finished training")
    _log(tmp_path / "eurosat" / "run_x", "70.5", "Finish training")
    (tmp_path / "dtd" / "seed4").mkdir()
    words = [str(tmp_path), "--multi-exp", "--ci95", "--seeds", "1-4"]
    assert cli.main(words) == 1
    lines = capsys.readouterr().out
    assert cli.main([*words, "--format", form]) == 1
    table = capsys.readouterr().out
    for said, digits in (("81.00% +- 1.39%", "81.0 1.3"), ("70.50% +- 0.00%", "70.5 0.0"), ("75.75%", "75.75")):
        assert said in lines
        assert all(number in table for number in digits.split())
    if form != "csv":
        assert "no log.txt" in table
        assert "no folders of seeds 3" in table


def test_mistakes(tmp_path, capsys):
    assert cli.main([str(tmp_path / "nowhere")]) == 2
    assert cli.main([str(tmp_path)]) == 2
    assert "--table" in capsys.readouterr().err


def test_the_script_runs(tmp_path, repo_root):
    _log(tmp_path / "seed1", "80.0")
    line = [sys.executable, "parse_test_res.py", str(tmp_path)]
    done = subprocess.run(line, cwd=repo_root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "* accuracy: 80.00% +- 0.00%" in done.stdout

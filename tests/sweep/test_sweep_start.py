"""Help and mistakes in arguments are answered without importing PyTorch, which takes seconds."""

import re
import subprocess
import sys

import pytest

MISTAKES = [["--shots", "0"], ["--seeds", "3-1"], ["--gpus", "x"], ["--datasets", "nowhere.yaml"], ["--variant", "a"]]


def test_help_and_mistakes_need_no_pytorch(repo_root):
    lines = [["--help"], ["nothing"], *(["base2new", "--trainers", "CoOp", *words] for words in MISTAKES)]
    code = (
        "import sys\n"
        "from sweep import cli\n"
        f"for line in {lines}:\n"
        "    try:\n"
        "        status = cli.main(line)\n"
        "    except SystemExit as end:\n"
        "        status = end.code\n"
        "    assert 'torch' not in sys.modules, line\n"
        "    print(f'status {status}')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=repo_root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^status (.*)", done.stdout, re.M) == ["0", *["2"] * (1 + len(MISTAKES))]


@pytest.mark.parametrize("protocol", ["base2new", "zeroshot"])
def test_help_says_what_each_protocol_does(protocol, capsys, monkeypatch, repo_root):
    from protocols import PROTOCOLS
    from sweep import cli

    assert PROTOCOLS[protocol].summary.endswith(".")
    assert PROTOCOLS[protocol].summary in cli.build_parser().format_help()

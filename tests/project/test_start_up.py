"""Help, and mistakes in arguments, are answered before PyTorch is loaded, which takes seconds."""

import subprocess
import sys

LINES = [
    *(
        ["-m", "results", "--help"],
        ["-m", "results", "/nowhere"],
        ["-m", "results", "/nowhere", "--table", "base2neww"],
    ),
    *(["-m", "sweep", "--help"], ["-m", "sweep", "base2neww", "--trainers", "APEX"], ["-m", "sweep", "base2new"]),
    *(["-m", "sweep", "base2new", "--trainers", "APEX", "--seeds", "one"], ["-m", "sweep", "--hlep"]),
    *(["predict.py", "--help"], ["predict.py", "--imagse"], ["train.py", "--help"]),
]
PROGRAM = """
import runpy, sys
for line in {lines}:
    sys.argv = line[1:] if line[0] == "-m" else line
    try:
        run = runpy.run_module if line[0] == "-m" else runpy.run_path
        run(line[1] if line[0] == "-m" else line[0], run_name="__main__")
    except SystemExit as end:
        assert (end.code or 0) == (0 if "--help" in line else 2), (line, end.code)
    else:
        raise AssertionError(f"{{line}} went on")
    assert not {{"torch", "torchvision"}} & set(sys.modules), line
"""


def test_help_and_mistakes_need_no_torch(repo_root):
    program = PROGRAM.format(lines=LINES)
    done = subprocess.run([sys.executable, "-c", program], cwd=repo_root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

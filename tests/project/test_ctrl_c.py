"""Ctrl-C ends every program with one sentence and status 130, be it while it still imports what it needs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = {
    "predict.py": ["predict.py", "run", "README.md"],
    "results": ["-m", "results", "."],
    "parse_test_res.py": ["parse_test_res.py", "."],
    "sweep": ["-m", "sweep", "zeroshot", "--trainers", "ZeroshotCLIP", "--dry-run"],
    "(check.py|python -m)": ["-m", "datasets.check"],
    "lpclip": ["-m", "lpclip", "--help"],
    "interpret_prompts": ["-m", "interpret_prompts", "--help"],
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_while_it_imports(name):
    code = (  # the interrupt comes at a place of its own: when what takes seconds begins to be imported
        "import os, runpy, signal, sys\n"
        "class Ask:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in ('torch', 'results.cli'): os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Ask())\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "module, sys.argv = sys.argv[1] == '-m', sys.argv[1:]\n"
        "if module: name, sys.argv = sys.argv[1], ['-m', *sys.argv[2:]]\n"
        "sys.path.insert(0, '.')\n"
        "runpy._run_module_as_main(name) if module else runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *PROGRAMS[name]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 130, done.stderr
    sentence = rf"{name}: ended by Ctrl-C\n|\nstopped; the same line goes on from here\n"  # the second: of a sweep
    assert re.fullmatch(sentence, done.stderr)

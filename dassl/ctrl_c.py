"""Imported first by programs: from then on Ctrl-C ends them with one sentence and status 130, not with a traceback.

What is imported after this takes seconds. Libraries do not import it.
"""

import os
import sys
from types import TracebackType

INTERRUPTED = 130  # as of a shell's command that SIGINT has ended

_usual = sys.excepthook


def _hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Answer Ctrl-C with a sentence, everything else as before."""
    if not issubclass(kind, KeyboardInterrupt):
        _usual(kind, error, trace)
        return
    path = os.path.abspath(sys.argv[0])
    file = os.path.basename(path)
    name = {"__main__.py": os.path.basename(os.path.dirname(path)), "-m": "python -m"}.get(file, file)
    sys.stderr.write(f"{name}: ended by Ctrl-C\n")
    raise SystemExit(INTERRUPTED)


sys.excepthook = _hook

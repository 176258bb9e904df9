"""`python -m sweep`."""

import dassl.ctrl_c  # noqa: F401  # isort: skip - before what takes seconds

import sys

from sweep.cli import main

if __name__ == "__main__":
    sys.exit(main())

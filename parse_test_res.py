"""Results of runs: the mean over seeds out of logs, or a protocol's table out of stored results (see --help)."""

import dassl.ctrl_c  # noqa: F401  # isort: skip - before what takes seconds

import sys

from results.cli import main

if __name__ == "__main__":
    sys.exit(main())

"""Results of runs: the mean over seeds out of logs, or a protocol's table out of stored results (see --help)."""

import sys

from results.cli import main

if __name__ == "__main__":
    sys.exit(main())

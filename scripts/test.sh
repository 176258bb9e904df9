#!/usr/bin/env bash
# Environment, test tools, lint, all tests. Arguments go to pytest. PYTHON= names another interpreter.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh" requirements.txt docs/requirements.txt tests/requirements.txt
export OMP_NUM_THREADS=1
ruff check .
ruff format --check --quiet .
python -m pytest -q -n 2 --dist loadfile "$@"

#!/usr/bin/env bash
# CoCoOp on the new classes of DATASET: tests what base2new_train.sh trained.
# Usage: base2new_test.sh DATASET SEED. Further arguments go to the sweep (--dry-run, --gpus 0,1, KEY VALUE ...).
cd "$(dirname "${BASH_SOURCE[0]}")/../.." && exec "${PYTHON:-python}" -m sweep base2new --part test \
  --trainers CoCoOp --datasets "${1:?DATASET}" --seeds "${2:?SEED}" "${@:3}"

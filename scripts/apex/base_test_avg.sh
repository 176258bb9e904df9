#!/usr/bin/env bash
# APEX on the new classes of DATASET: tests what base_train_avg.sh trained, seeds 1-20, prints averages.
# Usage: base_test_avg.sh DATASET. Further arguments go to the sweep (--dry-run, --gpus 0,1, KEY VALUE ...).
cd "$(dirname "${BASH_SOURCE[0]}")/../.." && exec "${PYTHON:-python}" -m sweep base2new --part test --average \
  --trainers APEX --datasets "${1:?DATASET}" --seeds 1-20 "${@:2}"

#!/usr/bin/env bash
# APEX on the base classes of DATASET: trains seeds 1-20, prints averages. DATA: folder of the data sets.
# Usage: base_train_avg.sh DATASET. Further arguments go to the sweep (--dry-run, --gpus 0,1, KEY VALUE ...).
cd "$(dirname "${BASH_SOURCE[0]}")/../.." && exec "${PYTHON:-python}" -m sweep base2new --part train --average \
  --trainers APEX --datasets "${1:?DATASET}" --seeds 1-20 "${@:2}"

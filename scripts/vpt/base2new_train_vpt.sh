#!/usr/bin/env bash
# VPT on the base classes of DATASET.
# Usage: base2new_train_vpt.sh DATASET SEED. Further arguments go to the sweep (--dry-run, --gpus 0,1, KEY VALUE ...).
cd "$(dirname "${BASH_SOURCE[0]}")/../.." && exec "${PYTHON:-python}" -m sweep base2new --part train \
  --trainers VPT --datasets "${1:?DATASET}" --seeds "${2:?SEED}" "${@:3}"

#!/usr/bin/env bash
# Language prompting on the base classes of DATASET.
# Usage: base2new_train_lp.sh DATASET SEED. Further arguments go to the sweep (--dry-run, --gpus 0,1, KEY VALUE ...).
cd "$(dirname "${BASH_SOURCE[0]}")/../.." && exec "${PYTHON:-python}" -m sweep base2new --part train \
  --trainers IVLP --configs IVLP=vit_b16_c2_ep5_batch4_4ctx_language_only --datasets "${1:?DATASET}" \
  --seeds "${2:?SEED}" "${@:3}"

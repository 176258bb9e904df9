#!/usr/bin/env bash
# Language prompting on all classes of DATASET (imagenet), for tests on other data sets.
# Usage: xd_train_lp.sh DATASET SEED. Further arguments go to the sweep (--dry-run, --gpus 0,1, KEY VALUE ...).
cd "$(dirname "${BASH_SOURCE[0]}")/../.." && exec "${PYTHON:-python}" -m sweep xd --part train --trainers IVLP \
  --configs IVLP=vit_b16_c2_ep5_batch4_4ctx_language_only --source "${1:?DATASET}" \
  --seeds "${2:?SEED}" "${@:3}"

#!/usr/bin/env bash
# APEX on all classes of DATASET (imagenet), for tests on other data sets.
# Usage: xd_train_apex.sh DATASET SEED. Further arguments go to the sweep (--dry-run, --gpus 0,1, KEY VALUE ...).
cd "$(dirname "${BASH_SOURCE[0]}")/../.." && exec "${PYTHON:-python}" -m sweep xd --part train --trainers APEX \
  --source "${1:?DATASET}" --seeds "${2:?SEED}" "${@:3}"

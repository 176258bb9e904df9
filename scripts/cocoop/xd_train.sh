#!/usr/bin/env bash
# CoCoOp on all classes of ImageNet, for tests on other data sets.
# Usage: xd_train.sh SEED. Further arguments go to the sweep (--dry-run, --gpus 0,1, KEY VALUE ...).
cd "$(dirname "${BASH_SOURCE[0]}")/../.." && exec "${PYTHON:-python}" -m sweep xd --part train \
  --trainers CoCoOp --seeds "${1:?SEED}" "${@:2}"

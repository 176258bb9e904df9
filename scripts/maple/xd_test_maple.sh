#!/usr/bin/env bash
# Tests on DATASET what xd_train_maple.sh trained on ImageNet (on NAME: --source NAME).
# Usage: xd_test_maple.sh DATASET SEED. Further arguments go to the sweep (--dry-run, --gpus 0,1, KEY VALUE ...).
cd "$(dirname "${BASH_SOURCE[0]}")/../.." && exec "${PYTHON:-python}" -m sweep xd --part test --trainers MaPLe \
  --datasets "${1:?DATASET}" --seeds "${2:?SEED}" "${@:3}"

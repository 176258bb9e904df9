#!/usr/bin/env bash
# Tests on the ten other data sets and the four ImageNet variants what xd_train_apex.sh trained.
# Usage: xd_test_all.sh SEED. Further arguments go to the sweep (--dry-run, --gpus 0,1, KEY VALUE ...).
cd "$(dirname "${BASH_SOURCE[0]}")/../.." && exec "${PYTHON:-python}" -m sweep xd --part test --trainers APEX \
  --datasets caltech101 oxford_pets stanford_cars oxford_flowers food101 fgvc_aircraft sun397 dtd eurosat ucf101 \
  imagenetv2 imagenet_sketch imagenet_a imagenet_r \
  --seeds "${1:?SEED}" "${@:2}"

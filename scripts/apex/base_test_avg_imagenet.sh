#!/usr/bin/env bash
# As base_test_avg.sh, for what base_train_avg_imagenet.sh trained.
# Usage: base_test_avg_imagenet.sh DATASET. Further arguments go to the sweep (--dry-run, --gpus 0,1, KEY VALUE ...).
cd "$(dirname "${BASH_SOURCE[0]}")/../.." && exec "${PYTHON:-python}" -m sweep base2new --part test --average \
  --trainers APEX --configs APEX=vit_b16_c2_ep5_batch16_2+2ctx_imagenet --datasets "${1:?DATASET}" \
  --seeds 1-20 "${@:2}"

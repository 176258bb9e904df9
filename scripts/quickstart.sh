#!/usr/bin/env bash
# Zero-shot CLIP, CoOp and APEX on the carried CLIP and data: trains on base classes, evaluates base and new, prints the table.
# Arguments go to the sweep (--seeds 1-5, --trainers APEX MaPLe, --dry-run ...). PYTHON= names another interpreter.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh" requirements.txt
mkdir -p data
exec python -m sweep base2new --trainers ZeroshotCLIP CoOp APEX \
  --datasets drawn_easy drawn_thermal drawn_chalk drawn_clutter digits drawn_textures drawn_polystar \
  --seeds 1-3 --root data --output output/quickstart "$@"

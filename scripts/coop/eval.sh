#!/usr/bin/env bash
# Tests on DATASET what main.sh trained on ImageNet (CFG, end, 16 tokens, 16 shots, no CSC), seeds 1-3.
# Usage: eval.sh DATASET CFG. Further arguments go to the sweep (--dry-run, --gpus 0,1, KEY VALUE ...).
cd "$(dirname "${BASH_SOURCE[0]}")/../.." && exec "${PYTHON:-python}" -m sweep xd --part test --trainers CoOp \
  --datasets "${1:?DATASET}" --configs "CoOp=${2:?CFG}" --shots 16 --seeds 1-3 \
  --variant nctx16_cscFalse_ctpend "${@:3}" \
  TRAINER.COOP.N_CTX 16 TRAINER.COOP.CSC False TRAINER.COOP.CLASS_TOKEN_POSITION end

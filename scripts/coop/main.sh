#!/usr/bin/env bash
# CoOp on all classes: trains and tests seeds 1-3. CTP: end or middle; CSC: True or False.
# Usage: main.sh DATASET CFG CTP NCTX SHOTS CSC. Further arguments go to the sweep (--dry-run, --gpus 0,1, KEY VALUE ...).
cd "$(dirname "${BASH_SOURCE[0]}")/../.." && exec "${PYTHON:-python}" -m sweep fewshot --trainers CoOp \
  --datasets "${1:?DATASET}" --configs "CoOp=${2:?CFG}" --shots "${5:?SHOTS}" --seeds 1-3 \
  --variant "nctx${4:?NCTX}_csc${6:?CSC}_ctp${3:?CTP}" "${@:7}" \
  TRAINER.COOP.N_CTX "$4" TRAINER.COOP.CSC "$6" TRAINER.COOP.CLASS_TOKEN_POSITION "$3"

#!/usr/bin/env bash
# Zero-shot CLIP on all classes of DATASET (a name, or its number in the list of `python -m sweep --help`).
# Usage: zeroshot.sh DATASET [CFG [further arguments of the sweep]], CFG one of configs/trainers/CoOp or ZeroshotCLIP (default: vit_b16, for carried data tiny_vit).
cd "$(dirname "${BASH_SOURCE[0]}")/../.." && exec "${PYTHON:-python}" -m sweep zeroshot \
  --trainers ZeroshotCLIP --datasets "${1:?DATASET}" ${2:+--configs "ZeroshotCLIP=$2"} "${@:3}"

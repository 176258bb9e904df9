#!/usr/bin/env bash
# All of one protocol with one method: trains, tests, prints the table. METHOD: any trainer, such as apex or maple.
# PROTOCOL: base2new, xd, dg, fewshot, union or another one of `python -m sweep --help`, with the papers' data sets, shots and seeds.
# Usage: reproduce.sh METHOD PROTOCOL. Further arguments go to the sweep (--dry-run, --datasets dtd, --gpus 0,1, KEY VALUE ...).
cd "$(dirname "${BASH_SOURCE[0]}")/.." && exec "${PYTHON:-python}" -m sweep "${2:?PROTOCOL}" \
  --trainers "${1:?METHOD}" "${@:3}"

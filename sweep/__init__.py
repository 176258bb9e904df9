"""Sweeps: many runs of train.py from one line, in few processes, on the CPU cores or GPUs that are there.

`plan` says which runs a protocol consists of and which of them need another one first; `state` finds out which are
complete; `pool` spreads the rest over worker processes (`worker`), which take run after run.
"""

"""Measurements: what a training run costs, and against what."""

"""Evaluators."""

from dassl.evaluation.build import EVALUATOR_REGISTRY, build_evaluator
from dassl.evaluation.evaluator import Classification, EvaluatorBase
from dassl.evaluation.open_world import OpenWorld, OutOfDistribution

__all__ = [
    "EVALUATOR_REGISTRY",
    "Classification",
    "EvaluatorBase",
    "OpenWorld",
    "OutOfDistribution",
    "build_evaluator",
]

"""Evaluators. Those that need PyTorch load it when somebody asks for them; what reads ``predictions.npz`` does not."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
_PLACES = ("build", "evaluator", "open_world")


def __getattr__(name: str) -> Any:
    """Return one of the names above; with the first of them all evaluators are registered."""
    if name in __all__:
        for place in [importlib.import_module(f"{__name__}.{place}") for place in _PLACES]:
            if hasattr(place, name):
                return getattr(place, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

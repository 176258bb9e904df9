"""Evaluators by name."""

from typing import Any

from dassl.utils import Registry
from dassl.utils.registry import build_from

EVALUATOR_REGISTRY = Registry("EVALUATOR")


def build_evaluator(cfg: Any, **kwargs: Any) -> Any:
    """Make the evaluator that ``TEST.EVALUATOR`` names.

    Raises:
        ValueError: none of that name is registered.
    """
    return build_from(EVALUATOR_REGISTRY, cfg.TEST.EVALUATOR, cfg, **kwargs)

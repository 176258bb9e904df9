"""What is wrong with a method that somebody has written, found when it is built or when its first step fails.

Shape legend: B images, C classes, E embedding width.
"""

import logging
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adaptation.method import Method
from dassl.engine.authoring import defining_class, keys_are_there, place_of, require_initialised
from dassl.engine.steps import largest

logger = logging.getLogger(__name__)

BEFORE_INIT = "before Module.__init__() call"  # PyTorch's words


def require_declared(trainer: type) -> None:
    """Raise a ValueError for a trainer without a node of keys, or whose node lacks PREC, which every run reads."""
    where, name = place_of(trainer), trainer.__name__
    declared: Mapping[str, Mapping] = getattr(trainer, "CONFIG", {})
    if not declared:
        raise ValueError(
            f'{where}: {name} declares no keys: write CONFIG = {{"{name.upper()}": CfgNode({{"PREC": "fp32"}})}}'
        )
    node = next(iter(declared))
    if "PREC" not in declared[node]:
        raise ValueError(
            f'{where}: CONFIG["{node}"] of {name} has no PREC, in which the run computes: add "PREC": "fp32"'
        )


def build(trainer: Any, classnames: list[str]) -> Method:
    """The method of a trainer for some classes.

    Raises:
        ValueError: `build_method` is missing or returns no method, an `__init__` does not call that of its base, or a
            key is asked for that there is not.
    """
    kind = type(trainer)
    function = kind.build_method
    if getattr(function, "__module__", "") == "adaptation.trainer":
        raise ValueError(f"{place_of(kind)}: {kind.__name__} has no build_method(self, backbone, classnames)")
    try:
        with keys_are_there():
            method = trainer.build_method(trainer.backbone, classnames)
    except AttributeError as error:
        if BEFORE_INIT not in str(error):
            raise
        raise ValueError(
            f"{_first_frame(error)}: the method's __init__ has to call super().__init__(backbone, classnames) first"
        ) from error
    if not isinstance(method, Method):
        raise ValueError(
            f"{place_of(function)}: build_method of {kind.__name__} returns {type(method).__name__}, not a Method"
        )
    require_initialised(method, "classnames", "super().__init__(backbone, classnames)")
    return method


def _first_frame(error: BaseException) -> str:
    """The file and line of the innermost frame that is not PyTorch's."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "torch" not in Path(frame.filename).parts]
    file = Path(frames[-1].filename)
    return f"{file.parent.name}/{file.name}, line {frames[-1].lineno}"


def require_learning(trainer: type, method: Method) -> None:
    """Raise a ValueError for what a method cannot learn: modules and parameters in lists, or nothing at all."""
    hidden = list(_in_containers(method))
    if hidden:
        attribute, kind, container = hidden[0]
        better = "nn.ModuleDict or nn.ParameterDict" if container == "dict" else "nn.ModuleList or nn.ParameterList"
        where = place_of(defining_class(kind, attribute), attribute)
        raise ValueError(
            f"{where}: self.{attribute} of {kind.__name__} is a {container} with parameters that "
            f"PyTorch does not see, so they would not be trained: make it an {better}"
        )
    if getattr(trainer, "learns", True) and not method.state_dict():
        raise ValueError(
            f"{place_of(type(method))}: {type(method).__name__} has nothing to learn: no nn.Parameter and no "
            f"module with parameters is an attribute of it (if so meant: learns = False in {trainer.__name__})"
        )


def _in_containers(method: Method) -> Iterator[tuple[str, type, str]]:
    """Attributes of a method's modules that are plain containers of parameters to train: name, class, container."""
    seen = {id(parameter) for parameter in method.parameters()}
    for module in method.modules():
        for name, value in vars(module).items():
            if name.startswith("_") or not isinstance(value, list | tuple | dict):
                continue
            for item in value.values() if isinstance(value, dict) else value:
                if any(p.requires_grad and id(p) not in seen for p in _parameters(item)):
                    yield name, type(module), type(value).__name__
                    break


def _parameters(item: Any) -> Iterable[nn.Parameter]:
    return item.parameters() if isinstance(item, nn.Module) else [item] if isinstance(item, nn.Parameter) else ()


def without_gradient(method: Method) -> list[str]:
    """The names of the parameters to train that have no gradient now, or one of zeros."""
    learned = [(name, p.grad) for name, p in method.named_parameters() if p.requires_grad and p.numel()]
    given = [(name, gradient) for name, gradient in learned if gradient is not None]
    sizes = torch.stack(largest(gradient for _, gradient in given)).tolist() if given else []
    moving = {name for (name, _), size in zip(given, sizes, strict=True) if size != 0}
    return [name for name, _ in learned if name not in moving]


def warn_of_idle(method: Method, names: Iterable[str]) -> None:
    """Say which parameters have received no gradient at the end of any epoch, and where they are made."""
    for name in names:
        attribute = name.partition(".")[0]
        where = place_of(defining_class(type(method), attribute), attribute)
        logger.warning("%s: %s has received no gradient: the loss does not depend on it", where, name)


@contextmanager
def first_step_explained(trainer: Any) -> Iterator[None]:
    """Explain, for the block, a failure of the first step by the shapes of what the method returns.

    Raises:
        ValueError: a shape is wrong; it names the function with its line, what it returns and what it has to return.
    """
    try:
        yield
    except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError) as error:
        first = trainer.epoch == trainer.start_epoch and trainer.batch_idx == 0 and not trainer.history
        if isinstance(error, FloatingPointError) or not first or not (said := wrong_shape(trainer)):
            raise
        raise ValueError(said) from error


@torch.no_grad()
def wrong_shape(trainer: Any) -> str:
    """What a method returns of a wrong shape for a batch of training images, as a sentence; "" if nothing is found."""
    method: Method = trainer.model
    images, labels = trainer.parse_batch_train(next(iter(trainer.train_loader_x)))
    b, c, e = len(images), len(method.classnames), trainer.backbone.embed_dim
    if all(_is_of(Method, method, name) for name in ("text_features", "encode", "forward", "loss")):
        return f"{place_of(type(method))}: {type(method).__name__} has no text_features(self), which returns (C, E)"
    with trainer.precision.autocast():
        checks: list[tuple[str, Callable[[], Any], tuple[int, ...]]] = [
            ("text_features", method.text_features, (c, e)),
            ("image_features", lambda: method.image_features(images), (b, e)),
            ("forward", lambda: method(images), (b, c)),
        ]
        for name, compute, shape in checks:
            if not _is_of(Method, method, name) and (said := _unlike(method, name, compute, shape)):
                return said
        if not _is_of(Method, method, "forward") and (
            said := _unlike(method, "forward", lambda: method(images), (b, c))
        ):
            return said
        return _wrong_loss(method, images, labels)


def _is_of(base: type, method: Method, name: str) -> bool:
    """Whether a method has a function from a base class."""
    return getattr(type(method), name) is getattr(base, name)


def _unlike(method: Method, name: str, compute: Callable[[], Any], shape: tuple[int, ...]) -> str:
    """How what a function returns differs from what it has to return; "" if it does not, or fails itself."""
    try:
        value = compute()
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
        return ""
    found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
    if found == shape:
        return ""
    legend = {"text_features": "(C, E)", "image_features": "(B, E)", "forward": "(B, C)"}[name]
    return f"{place_of(getattr(type(method), name))}: {name} returns {found}, but must return {legend}, here {shape}"


def _wrong_loss(method: Method, images: Tensor, labels: Tensor) -> str:
    """What is wrong with what `loss`, or `extra_loss`, returns; "" if nothing is, or it fails itself."""
    try:
        value = method.loss(images, labels)
    except (RuntimeError, TypeError, ValueError, IndexError):
        return ""
    own = "loss" if not _is_of(Method, method, "loss") else "extra_loss"
    where = place_of(getattr(type(method), own))
    if not (isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], Mapping)):
        found = ", ".join(type(part).__name__ for part in (value if isinstance(value, tuple) else (value,)))
        return f"{where}: {own} returns {found}, but must return the loss and a dictionary of what the log shows"
    if isinstance(value[0], Tensor) and value[0].ndim > 0:
        return (
            f"{where}: {own} makes a loss of shape {tuple(value[0].shape)}, but must make a scalar (take the mean), "
            "or the trainer must have combined_gradient"
        )
    return ""

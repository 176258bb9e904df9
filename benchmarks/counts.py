"""What one training step of each trainer costs, counted: the same numbers on every machine.

    python -m benchmarks.counts                                     # all trainers on ViT-B/16; 10, 100 and 1000 classes
    python -m benchmarks.counts --trainers APEX CoOp --classes 50

The step is run on tensors that have shapes and no values: nothing is computed, and no weights are needed. The lengths
of the class names are distributed as those of ImageNet (`benchmarks.parts.class_names`). Each trainer has its default
configuration, float32, and 16 images a step (CoCoOp one). Left out are trainers that make no steps, and Skip Tuning,
where the number of classes in a step follows from the values of its features. Counted are:

- operations: floating-point operations of matrix products, convolutions and attention, forward and backward;
- their ratios to two limits (`benchmarks.limits`), computed from widths, depths, tokens and what is learned: with whole
  sentences, and where the tokens that all sentences begin with are computed once;
- kernels and synchronisations (`benchmarks.kernels`), and the most bytes that tensors take at a time, without the
  weights of the backbone.
"""

import argparse
import logging
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

import train
from adaptation.trainer import MethodTrainer
from benchmarks.kernels import OperationCounter
from benchmarks.limits import LIMITS
from benchmarks.parts import SIZES, class_names, table
from clip import clip
from clip.backbone import Backbone
from clip.chunking import format_bytes
from clip.model import CLIP
from clip.precision import CPU, Precision
from clip.towers import Prompts
from dassl.engine import TRAINER_REGISTRY

aten = torch.ops.aten
IMAGES = 16
# one learns nothing step by step; the classes of the other's step follow from values
NOT_COUNTED = ("TipAdapter", "SkipTuning")
ONE_IMAGE = ("CoCoOp",)  # a step of one image, as in its configurations
ON_FEATURES = ("CLAP", "LPPlusPlus", "ZSLP")  # whose images are encoded before
CLASSES = (10, 100, 1000)


WHOLE = (aten.arange, aten.randint, aten.randperm)  # make integers of integers


def _is_float(value: object) -> bool:
    return isinstance(value, float)


class KnownIntegers(TorchDispatchMode):
    """Inside a `FakeTensorMode`, integers and booleans that follow from integers alone keep their values.

    So what depends on the lengths of sentences is as it is. A value that the host asks of a tensor without values is 1.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation with values where all that goes in has some and is no fraction."""
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        known = not any(isinstance(tensor, FakeTensor) or tensor.is_floating_point() for tensor in tensors)
        if func is aten._local_scalar_dense.default and not known:
            return 1
        dtype = kwargs.get("dtype")
        if dtype is None and not tensors and func.overloadpacket in WHOLE and not any(map(_is_float, args)):
            dtype = torch.int64
        if known and (bool(tensors) if dtype is None else not dtype.is_floating_point):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        return func(*args, **kwargs)


class PeakMemory(TorchDispatchMode):
    """The most bytes of storages that there were at a time, of those that were made inside.

    Attributes:
        peak: that number.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation and note the memory of its result."""
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and not func.is_view:
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self._known:
            self._known[storage._cdata] = storage.nbytes()
            self._now += storage.nbytes()
            self.peak = max(self.peak, self._now)
            weakref.finalize(storage, self._forget, storage._cdata)

    def _forget(self, key: int) -> None:
        self._now -= self._known.pop(key)


def _attention(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


# PyTorch has formulas for the attention of GPUs only
ATTENTION = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def _copy_shape(tensor: Tensor, memo: dict[int, object]) -> Tensor:
    """Another tensor or parameter of the same shape, for `copy.deepcopy`."""
    other = torch.empty_like(tensor.detach())
    copied = nn.Parameter(other, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else other
    memo[id(tensor)] = copied
    return copied


@contextmanager
def without_values() -> Iterator[FakeTensorMode]:
    """Inside, new tensors have shapes and no values."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    setattr(FakeTensor, "__deepcopy__", _copy_shape)  # noqa: B010  # PyTorch's copies storages, which are not there
    try:
        with mode, KnownIntegers():
            yield mode
    finally:
        delattr(FakeTensor, "__deepcopy__")


class SizesOnly(Backbone):
    """A backbone whose sentences are encoded in training steps alone; what methods compute once is not computed here.

    Class attributes:
        stepping: whether a step is going on.
    """

    stepping = False

    def encode_text(self, tokens: Tensor, prompts: Prompts = (), **options: Any) -> Tensor:
        """Features (N, E)."""
        if SizesOnly.stepping:
            return super().encode_text(tokens, prompts, **options)
        return torch.empty(len(tokens), self.embed_dim)


def backbone_without_values(size: str) -> Backbone:
    """A backbone of one of `SIZES`; call it inside `without_values`."""
    model = CLIP(*SIZES[size])
    return SizesOnly("ViT-B/16", model, model.visual.tower(), model.text_tower(), clip.tokenize)


def trainer_of(name: str, backbone: Backbone, classes: int) -> MethodTrainer:
    """A registered trainer that has no data, before its first step."""
    kind = TRAINER_REGISTRY.get(name)

    def build_data_loader(self: Any) -> None:
        self.precision = Precision("fp32", CPU)
        self.backbone = backbone
        names = class_names(classes)
        dataset = SimpleNamespace(classnames=names, template="a photo of a {}.", train_x=[])
        self.dm = SimpleNamespace(dataset=dataset, num_classes=classes)
        self.train_loader_x = range(10)
        self.num_classes, self.lab2cname, self.num_batches = classes, dict(enumerate(names)), 10

    def build_method(self: Any, backbone: Backbone, classnames: list[str]) -> Any:
        method: Any = kind.build_method(self, backbone, classnames)
        method.to = lambda device: method  # is there, and parameters without values cannot be moved
        return method

    words = ["--trainer", name, "--backbone", backbone.name, "--output-dir", "none", "USE_CUDA", "False"]
    words += [f"TRAINER.{kind.config_node}.PREC", "fp32", "OPTIM.LR", "0.002", "DATASET.NAME", "Caltech101"]
    cfg = train.build_config(train.build_parser().parse_args(words))
    own = {"build_data_loader": build_data_loader, "build_method": build_method, "__module__": __name__}
    dry = type(name, (kind,), {**own, "_warn_of_unknown_words": lambda self, classnames, tokens: None})
    return dry(cfg)


@contextmanager
def stepping() -> Iterator[None]:
    """Inside, sentences are encoded."""
    SizesOnly.stepping = True
    try:
        yield
    finally:
        SizesOnly.stepping = False


def on_host(trainer: MethodTrainer) -> list[Tensor]:
    """What of a trainer stays on the host: the steps that its optimiser counts, and streams of dropout."""
    steps = [state.get("step") for state in trainer.optim.state.values()]
    streams = [value for name, value in trainer.model.named_buffers() if name.rpartition(".")[2] == "stream"]
    return [value for value in (*steps, *streams) if isinstance(value, Tensor)]


def prepared(name: str, backbone: Backbone, classes: int) -> tuple[MethodTrainer, Callable[[], None]]:
    """A registered trainer and its training step; call it inside `without_values`."""
    trainer = trainer_of(name, backbone, classes)
    trainer.set_model_mode("train")
    images = images_of(name)
    batch = {"img": torch.empty(images, *sample_shape(name, backbone)), "label": torch.arange(images) % classes}

    def step() -> None:
        with stepping():
            trainer.forward_backward(batch)

    return trainer, step


def sample_shape(name: str, backbone: Backbone) -> tuple[int, ...]:
    """What a trainer's step takes of an image: its pixels, or its features."""
    side = backbone.image_size
    return (backbone.embed_dim,) if name in ON_FEATURES else (3, side, side)


def images_of(name: str) -> int:
    """Images of a step."""
    return 1 if name in ONE_IMAGE else IMAGES


def operations(step: Callable[[], object]) -> int:
    """Floating-point operations of matrix products, convolutions and attention."""
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        step()
    return counter.get_total_flops()


def limits(name: str, backbone: Backbone, classes: int) -> tuple[int, int] | None:
    """The least operations of a trainer's step, with whole sentences and with beginnings that are computed once; None
    where no limit is written down."""
    if name not in LIMITS:
        return None
    lengths = [len(words.split()) for words in class_names(classes)]  # each word is one token
    whole, shared = (LIMITS[name].operations(backbone, images_of(name), lengths, share) for share in (False, True))
    return whole, shared


def row(name: str, backbone: Backbone, classes: int) -> dict[str, object]:
    """A line of the table; call it inside `without_values`."""
    trainer, step = prepared(name, backbone, classes)
    step()  # what only the first one does is over
    with PeakMemory() as memory, OperationCounter(lambda: on_host(trainer)) as counter:
        step()
    done, least = operations(step), limits(name, backbone, classes)
    launched = counter.kernels.total() - counter.kernels["device"]  # which is no operation
    return {
        "trainer": name,
        "classes": classes,
        "operations, G": round(done / 1e9),
        "/ limit": f"{done / least[0]:.2f}" if least else "-",
        "/ limit, beginning once": f"{done / least[1]:.2f}" if least else "-",
        "kernels": launched,
        "synchronisations": len(counter.synchronisations),
        "peak": format_bytes(memory.peak),
    }


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.counts", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    methods = {name: kind for name, kind in TRAINER_REGISTRY if issubclass(kind, MethodTrainer)}
    names = sorted(name for name, kind in methods.items() if kind.learns and name not in NOT_COUNTED)
    parser.add_argument("--trainers", nargs="+", choices=names, default=names, help="(default: all)", metavar="NAME")
    parser.add_argument("--classes", nargs="+", type=int, default=list(CLASSES), help="(default: 10 100 1000)")
    parser.add_argument("--size", choices=SIZES, default="b16", help="of the model (default: %(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Count and print, a line as soon as it is known."""
    args = build_parser().parse_args(argv)
    with without_values():
        backbone = backbone_without_values(args.size)
        for i, name in enumerate(args.trainers):
            for j, classes in enumerate(args.classes):
                lines = table([row(name, backbone, classes)]).splitlines(keepends=True)
                sys.stdout.write("".join(lines if i + j == 0 else lines[2:]))
                sys.stdout.flush()
    return 0


if __name__ == "__main__":
    import trainers  # noqa: F401  (registers what is in the folder)

    logging.disable(logging.WARNING)
    sys.exit(main())

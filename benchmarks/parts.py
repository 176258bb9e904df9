"""What is measured: training steps and evaluations of APEX on random weights, plain, default and stacked."""

import random
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.flop_counter import FlopCounterMode

from adaptation.feature_cache import BatchImages, FeatureCache
from adaptation.stacking import RunGroup, evenly, single_run_loss, stacked_losses
from benchmarks.plain import PlainAPEX, plain_backbone
from clip.backbone import Backbone
from clip.loading import openai_backbone
from clip.model import CLIP
from clip.precision import Precision
from clip.simple_tokenizer import SimpleTokenizer
from trainers.apex import APEXMethod

# arguments of CLIP: the sizes of the carried model and of ViT-B/16
SIZES = {
    "tiny": (128, 32, 6, 128, 8, 77, 49408, 128, 2, 3),
    "b16": (512, 224, 12, 768, 16, 77, 49408, 512, 8, 12),
}
# words of the names of a hundred classes: the distribution of ImageNet's sentences (mean 9.2 tokens, longest 18)
WORDS_OF_A_NAME = {1: 34, 2: 36, 3: 16, 4: 7, 5: 3, 6: 2, 7: 1, 11: 1}
FIRST_WORD = 1000  # of the vocabulary, which begins with pieces of words
METHODS = {"plain": PlainAPEX, "default": APEXMethod}
NUMBERS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "amp": torch.float16}


@cache
def single_words() -> list[str]:
    """Words that are one token each."""
    tokens = [token.removesuffix("</w>") for token in list(SimpleTokenizer().encoder)[FIRST_WORD:] if "</w>" in token]
    return [token for token in tokens if token.isascii() and token.isalpha()]


def class_names(count: int, new: bool = False) -> list[str]:
    """Names, at most 1000, whose numbers of tokens are distributed as those of ImageNet's; the new ones are others."""
    of_hundred = sorted(n for n, share in WORDS_OF_A_NAME.items() for _ in range(share))
    lengths = [of_hundred[int((i + 0.5) * 100 / count)] for i in range(count)]
    random.Random(0).shuffle(lengths)
    words, first = single_words(), 1000 * int(new)
    return [" ".join([words[first + i], *words[2000 + 10 * i :][: n - 1]]) for i, n in enumerate(lengths)]


@dataclass
class Bench:
    """Models of one size on one device, made when they are asked for.

    Args:
        size: a name in `SIZES`.
        device: where.
        batch: images of a training step.
    """

    size: str
    device: torch.device
    batch: int
    _backbones: dict[tuple[str, str], Backbone] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Tensor]:
        """Random weights, always the same."""
        torch.manual_seed(0)
        return CLIP(*SIZES[self.size]).state_dict()

    def backbone(self, kind: str, precision: str) -> Backbone:
        """The backbone of a kind ("plain" or "default")."""
        key = kind, precision
        if key not in self._backbones:
            weights = self.state_dict()
            made = plain_backbone(weights, self.device) if kind == "plain" else openai_backbone(self.size, weights)
            self._backbones[key] = Precision(precision, self.device).prepare(made)
        return self._backbones[key]

    def run(self, kind: str, precision: str, classes: int, seed: int = 0, batch: int = 0) -> "Run":
        """A run before its first step."""
        backbone = self.backbone(kind, precision)
        torch.manual_seed(seed)
        method = METHODS[kind](backbone, class_names(classes)).to(self.device)
        size, count = backbone.image_size, batch or self.batch
        images = torch.randn(count, 3, size, size, device=self.device)
        labels = torch.randint(classes, (count,), device=self.device)
        optimiser = torch.optim.Adadelta(method.parameters(), lr=0.15, weight_decay=1e-3)
        return Run(kind, method.train(), backbone, Precision(precision, self.device), optimiser, images, labels)


@dataclass
class Run:
    """One run with one batch; as far as `adaptation.stacking` is concerned, a trainer."""

    kind: str
    model: nn.Module
    backbone: Backbone
    precision: Precision
    optimiser: Optimizer
    images: Tensor
    labels: Tensor

    @property
    def request(self) -> tuple["Run", Tensor, Tensor]:
        """The step that this run asks for."""
        return self, self.images, self.labels

    def backward(self, loss: Tensor) -> None:
        """Give gradients to what is learned."""
        self.precision.scaler.scale(loss).backward()

    def update(self) -> None:
        """Step, and forget the gradients."""
        self.precision.scaler.step(self.optimiser)
        self.precision.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)

    def step(self) -> None:
        """One training step."""
        single_run_loss(self.request)
        self.update()

    @torch.no_grad()
    def evaluate(self, batches: int = 1) -> None:
        """Logits of so many batches: an evaluation from its beginning."""
        mode = self.model.training  # training would make the classes of this model those that it was trained on
        self.model.eval()
        with self.precision.autocast():
            for _ in range(batches):
                self.model(self.images)
        self.model.train(mode)

    def on_new_classes(self) -> "Run":
        """The same learned state, to be evaluated on as many other classes. All of these count as unseen, so that the
        frozen image tower is needed."""
        names = class_names(len(self.model.classnames), new=True)
        method = METHODS[self.kind](self.backbone, names, eps=0.0).to(self.backbone.device)
        method.load_state_dict(self.model.state_dict())
        method.eval()
        with torch.no_grad(), self.precision.autocast():
            assert method.ensemble_weights()["weight"] < 1
        return replace(self, model=method)

    def with_cached_features(self, path: Path) -> "Run":
        """The same, where the features of its images in the frozen tower are in a file, as by an earlier seed."""
        count = len(self.images)
        for _ in range(2):  # the first one fills the file
            images = BatchImages.of(torch.arange(count), lambda: self.images)
            run = replace(self, model=copy(self.model), images=images)
            cache = FeatureCache(lambda: path, count, self.backbone.embed_dim)
            object.__setattr__(run.model, "backbone", cache.wrap(self.backbone))
            run.evaluate()
            cache.write()
        return run

    @property
    def longest(self) -> int:
        """Tokens of the longest sentence."""
        return int(self.model.context.end.max()) + 1


def separate(runs: Sequence[Run]) -> Callable[[], None]:
    """A step of each run, one after the other."""

    def steps() -> None:
        for run in runs:
            run.step()

    return steps


def stacked(runs: Sequence[Run], at_once: int) -> Callable[[], None]:
    """A step of each run, so many of them computed together."""
    packs = [(pack, RunGroup.of(pack)) for pack in evenly(runs, at_once)]

    def steps() -> None:
        for pack, group in packs:
            stacked_losses([run.request for run in pack], group)
            for run in pack:
                run.update()

    return steps


def repeated(compute: Callable[[], object], times: int) -> Callable[[], None]:
    """The same so many times."""

    def all_of_them() -> None:
        for _ in range(times):
            compute()

    return all_of_them


def operations(compute: Callable[[], object]) -> int:
    """Floating-point operations of matrix products, attention and convolutions."""
    with FlopCounterMode(display=False) as counter:
        compute()
    return counter.get_total_flops()


def matrix_rate(precision: str, device: torch.device, now: Callable[[], float]) -> float:
    """Operations per second of a product of large square matrices, the best of five."""
    n = 2048 if device.type == "cpu" else 8192
    a = torch.randn(n, n, device=device, dtype=NUMBERS[precision])
    best = float("inf")
    for _ in range(5):
        start = now()
        a @ a
        best = min(best, now() - start)
    return 2 * n**3 / best


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows with the same keys as a Markdown table."""
    head = list(rows[0])
    lines = [head, ["---"] * len(head), *([_cell(row[key]) for key in head] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)

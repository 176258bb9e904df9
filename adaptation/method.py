"""What every method is: learned state around a frozen backbone, for one list of classes.

Shape legend: B images, C classes, E embedding width.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adaptation.former_names import translate_method
from clip.backbone import Backbone
from clip.precision import autocast_disabled, to_float32

# own name -> name in the official checkpoints; `*` stands for one part of a name, the same on both sides
IMAGE_PROMPT_NAMES = {
    "image_prompts.tokens.0": "image_encoder.VPT",
    "image_prompts.tokens.*": "image_encoder.transformer.resblocks.*.VPT_shallow",
}
TEXT_PROMPT_NAMES = {"text_prompts.tokens.*": "text_encoder.transformer.resblocks.*.VPT_shallow"}
CONTEXT_NAMES = {"context.vectors": "prompt_learner.ctx"}


def translated(name: str, table: Mapping[str, str]) -> str | None:
    """The other name of a dotted name by a table in which `*` stands for one part; None if the table has none."""
    parts = name.split(".")
    for source, target in table.items():
        pattern = source.split(".")
        if len(pattern) == len(parts) and all(p in ("*", part) for p, part in zip(pattern, parts, strict=True)):
            free = iter(part for p, part in zip(pattern, parts, strict=True) if p == "*")
            return ".".join(next(free) if p == "*" else p for p in target.split("."))
    return None


def percent_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """How many of the logits (B, C) are largest at their label (B,), in percent; a scalar."""
    return 100 * (logits.argmax(dim=1) == labels).sum() / len(labels)


def rows_of_classes(values: Tensor, trained: Sequence[str], classnames: Sequence[str]) -> Tensor:
    """The rows of some classes, found by name, of a tensor that has a row for each trained class.

    Two classes of ImageNet may share a name: then the mean of their rows is taken.

    Args:
        values: a row for each of `trained`.
        trained: names of the classes that were trained on.
        classnames: of the classes wanted, all of which are among those.
    """
    rows = [[row for row, name in enumerate(trained) if name == own] for own in classnames]
    return torch.stack([values[same].mean(dim=0) for same in rows])


class Method(nn.Module):
    """Base of the methods: features of both sides, cosine logits, cross-entropy, names in checkpoints.

    The backbone is held, not owned: it is no submodule, so `parameters()` and `state_dict()` are what the method
    learned and nothing else.

    Class attributes:
        checkpoint_names: how own parameters and buffers are called in checkpoints, own name -> official name; `*`
            stands for one part of a dotted name. What is not listed has its own name there.
    """

    checkpoint_names: Mapping[str, str] = {}
    backbone: Backbone

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        translate_method(cls)

    def __init__(self, backbone: Backbone, classnames: list[str]):
        super().__init__()
        object.__setattr__(self, "backbone", backbone)
        self.classnames = list(classnames)
        self._evaluation: dict[str, object] = {}
        self._has_trained = False

    def text_features(self) -> Tensor:
        """Features (C, E) of the classes, not normalised; NotImplementedError where each image has its own."""
        raise NotImplementedError

    def image_features(self, images: Tensor) -> Tensor:
        """Features (B, E) of images (B, 3, H, W), not normalised: by default those of the frozen tower."""
        return self.backbone.encode_image(images)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What the logits of images (B, 3, H, W) are made of: their features (B, E) and those of the classes, (C, E) or
        for each image (B, C, E); not normalised."""
        t = self.text_features() if self.training else self.cached_in_eval("text", self.text_features)
        return self.image_features(images), t

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C) of images (B, 3, H, W)."""
        return self.logits(*self.encode(images))

    def logits(self, z: Tensor, t: Tensor) -> Tensor:
        """Scaled cosine (B, C) of image features (B, E) and text features (C, E)."""
        with autocast_disabled(z):
            scaled = to_float32(self.backbone.logit_scale) * F.normalize(to_float32(z), dim=-1)
            logits = scaled @ F.normalize(to_float32(t), dim=-1).T
        bias = self.backbone.logit_bias
        return logits if bias is None else logits + bias

    def loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The training loss (a scalar), cross-entropy plus `extra_loss`, and what the log shows of it."""
        z, t = self.encode(images)
        logits = self.logits(z, t)
        loss = F.cross_entropy(logits, labels) + self.extra_loss(images, z, t, logits)
        return loss, {"loss": loss, "acc": 100 * (logits.argmax(dim=1) == labels).sum() / len(labels)}

    def extra_loss(self, images: Tensor, z: Tensor, t: Tensor, logits: Tensor) -> Tensor | float:
        """What the training loss has beside the cross-entropy.

        Args:
            images: (B, 3, H, W).
            z, t: their features and those of the classes (`encode`).
            logits: (B, C).
        """
        return 0.0

    def cached_in_eval(self, key: str, compute):
        """The value of `compute()`; in evaluation it is computed once until the mode or the weights change."""
        if self.training:
            return compute()
        if key not in self._evaluation:
            self._evaluation[key] = compute()
        return self._evaluation[key]

    def evaluated_text_features(self) -> Tensor | None:
        """Features (C, E) of the classes that this evaluation has used; None where each image has its own."""
        features = self._evaluation.get("text")
        return features if isinstance(features, Tensor) and features.ndim == 2 else None

    once = cached_in_eval  # its former name; goes with the next release

    def train(self, mode: bool = True) -> "Method":
        """Set the mode; what evaluation had kept is forgotten."""
        self._evaluation.clear()
        if mode and not self._has_trained:
            self.begin_training()
            self._has_trained = True
        return super().train(mode)

    def begin_training(self) -> None:
        """Compute the constants that training needs and evaluation does not; called before the first training step."""

    def report(self) -> dict:
        """What a run's metrics tell about this method beyond accuracy; plain data."""
        return {}

    def official_name(self, own: str) -> str:
        """The name in checkpoints of an own parameter or buffer."""
        return translated(own, self.checkpoint_names) or own

    def state_dict(self, *args, **kwargs) -> dict[str, Tensor]:  # type: ignore[override]  # any arguments of PyTorch's
        """Everything learned, under its official name (arguments as in PyTorch)."""
        return {self.official_name(name): value for name, value in super().state_dict(*args, **kwargs).items()}

    def load_state_dict(self, state: Mapping[str, Tensor], strict: bool = True, assign: bool = False) -> None:
        """Take the learned state from a checkpoint of this project or from an official one.

        An official whole-model checkpoint holds frozen weights as well: they are passed over. Names of a checkpoint
        that registered only a part of the model (`ctx` of the prompt learner) are recognised. `strict` and `assign`
        have no effect: the check is always strict about what is learned, and values are always copied.

        Raises:
            ValueError: something learned is missing, has another shape, or the checkpoint holds prompts that this
                configuration has no place for (all named).
        """
        own = self.state_dict()
        state = {key.removeprefix("module."): value for key, value in state.items()}
        of_part = Counter(key.partition(".")[2] for key in own)
        found: dict[str, Tensor] = {}
        for key in own:
            in_part = key.partition(".")[2]
            given = state.get(key, state.get(in_part) if of_part[in_part] == 1 else None)
            if given is not None:
                found[key] = given
        missing = [key for key in own if key not in found]
        learned = {official: own for own, official in self.checkpoint_names.items()}
        extra = [key for key in state if key not in own and translated(key, learned)]
        shapes = [
            f"{key} {tuple(found[key].shape)} instead of {tuple(value.shape)}"
            for key, value in own.items()
            if key in found and found[key].shape != value.shape
        ]
        problems = {"missing": missing, "of another shape": shapes, "without a place here": extra}
        if any(problems.values()):
            said = "; ".join(f"{what}: {', '.join(names)}" for what, names in problems.items() if names)
            raise ValueError(f"the checkpoint does not fit {type(self).__name__} as configured ({said})")
        self._evaluation.clear()
        with torch.no_grad():
            for key, value in own.items():
                value.copy_(found[key])

    def select_classes(self, state: Mapping[str, Tensor], trained: list[str]) -> Mapping[str, Tensor]:
        """The part of a learned state that applies to this method's classes.

        Called where the trainer's `class_transfer` allows these classes and they are not those of the training.

        Args:
            state: of a checkpoint, by official names.
            trained: the classes that it was trained on.
        """
        return state

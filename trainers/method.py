"""What every method is: learned state around a frozen backbone, for one list of classes.

Shape legend: B images, C classes, E embedding width.
"""

import re
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip.backbone import Backbone
from clip.precision import full, whole
from trainers.kept_features import KeptFeatures

# own parameter name -> name in the official checkpoints, as (pattern, replacement)
Names = tuple[tuple[str, str], ...]
IMAGE_PROMPT_NAMES: Names = (
    (r"image_prompts\.tokens\.0", "image_encoder.VPT"),
    (r"image_prompts\.tokens\.(\d+)", r"image_encoder.transformer.resblocks.\1.VPT_shallow"),
)
TEXT_PROMPT_NAMES: Names = ((r"text_prompts\.tokens\.(\d+)", r"text_encoder.transformer.resblocks.\1.VPT_shallow"),)
CONTEXT_NAMES: Names = ((r"context\.vectors", "prompt_learner.ctx"),)
READS_IMAGES = {"plain_image_features", "image_features", "forward"}


def percent_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """How many of the logits (B, C) are largest at their label (B,), in percent; a scalar."""
    return 100 * (logits.argmax(dim=1) == labels).sum() / len(labels)


class Method(nn.Module):
    """Base of the methods: features of both sides, cosine logits, cross-entropy, names in checkpoints.

    The backbone is held, not owned: it is no submodule, so `parameters()` and `state_dict()` are what the method
    learned and nothing else.

    Class attributes:
        names: how own parameters are called in checkpoints (the official names).
        part: what those names begin with, and what an official checkpoint that holds only this part leaves out.
        owns_classes: whether the learned state belongs to the classes it was trained on.
        reads_pixels: whether evaluation needs images, not only their features in the plain tower. A class that writes
            its own `plain_image_features`, `image_features` or `forward` does, unless it says otherwise.
    """

    names: Names = ()
    part = "prompt_learner."
    owns_classes = False
    reads_pixels = False
    kept: KeptFeatures | None = None  # of the images that are being evaluated

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        if "reads_pixels" not in vars(cls) and READS_IMAGES & vars(cls).keys():
            cls.reads_pixels = True

    def __init__(self, backbone: Backbone, classnames: list[str]):
        super().__init__()
        object.__setattr__(self, "backbone", backbone)
        self.classnames = list(classnames)
        self._evaluation: dict[str, object] = {}
        self._has_trained = False

    def text_features(self) -> Tensor:
        """Features (C, E) of the classes, not normalised."""
        raise NotImplementedError

    def image_features(self, images: Tensor) -> Tensor:
        """Features (B, E) of images (B, 3, H, W), not normalised."""
        return self.plain_image_features(images)

    def plain_image_features(self, images: Tensor) -> Tensor:
        """Features (B, E) of images without any prompts, not normalised; in evaluation the kept ones, if there are."""

        def compute() -> Tensor:
            return full(self.backbone.encode_image(images))

        if self.kept is None or not self.kept.has(images):
            return compute()
        return self.kept.of_batch(compute, self.backbone.device)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C) of images (B, 3, H, W)."""
        return self.logits(self.image_features(images), self.once("text", self.text_features))

    def logits(self, z: Tensor, t: Tensor) -> Tensor:
        """Scaled cosine (B, C) of image features (B, E) and text features (C, E)."""
        with whole(z):
            scaled = full(self.backbone.logit_scale) * F.normalize(full(z), dim=-1)
            logits = scaled @ F.normalize(full(t), dim=-1).T
        bias = self.backbone.logit_bias
        return logits if bias is None else logits + bias

    def loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The training loss (a scalar) and what the log shows of it."""
        logits = self(images)
        loss = F.cross_entropy(logits, labels)
        return loss, {"loss": loss, "acc": percent_correct(logits, labels)}

    def once(self, key: str, compute):
        """The value of `compute()`; in evaluation it is computed once until the mode or the weights change."""
        if self.training:
            return compute()
        if key not in self._evaluation:
            self._evaluation[key] = compute()
        return self._evaluation[key]

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
        for pattern, replacement in self.names:
            if re.fullmatch(pattern, own):
                return re.sub(pattern, replacement, own)
        return own

    def state_dict(self, *args, **kwargs) -> dict[str, Tensor]:
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
        found = {key: state.get(key, state.get(key.removeprefix(self.part))) for key in own}
        missing = [key for key, value in found.items() if value is None]
        extra = [key for key in state if key not in own and self._is_learned_name(key)]
        shapes = [
            f"{key} {tuple(found[key].shape)} instead of {tuple(value.shape)}"
            for key, value in own.items()
            if found[key] is not None and found[key].shape != value.shape
        ]
        problems = {"missing": missing, "of another shape": shapes, "without a place here": extra}
        if any(problems.values()):
            said = "; ".join(f"{what}: {', '.join(names)}" for what, names in problems.items() if names)
            raise ValueError(f"the checkpoint does not fit {type(self).__name__} as configured ({said})")
        self._evaluation.clear()
        with torch.no_grad():
            for key, value in own.items():
                value.copy_(found[key])

    def state_for_classes(self, state: Mapping[str, Tensor], trained: list[str]) -> Mapping[str, Tensor]:
        """What of a state that was trained on the classes `trained` serves this method's classes.

        Raises:
            ValueError: the learned state belongs to its classes, and these are others.
        """
        if self.owns_classes and trained != self.classnames:
            raise ValueError(
                f"trained on other classes ({len(trained)}: {', '.join(trained[:3])}, ...), and what "
                f"{type(self).__name__.removesuffix('Method')} learns belongs to its classes: it cannot be evaluated "
                "on this list"
            )
        return state

    def _is_learned_name(self, key: str) -> bool:
        """Whether a name in a checkpoint is one that this method gives to something learned."""
        patterns = (re.sub(r"\\\\\d", r"\\w+", re.escape(official)) for _, official in self.names)
        return any(re.fullmatch(pattern, key) for pattern in patterns)

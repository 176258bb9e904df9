"""Methods that learn weights of the towers: which ones, their float32 copies, and what a run leaves of them.

The frozen backbone is shared by all runs of a process and stays what it is. A method that learns weights has copies of
these alone; the others are the frozen ones. Statistics of batch normalisation are no weights: they stay as they are.

Shape legend: C classes, E embedding width.
"""

import re
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from yacs.config import CfgNode

from adaptation.method import Method
from adaptation.templates import fill, template_of
from adaptation.trainer import MethodTrainer
from clip.backbone import Backbone
from clip.precision import convert_all
from clip.substitution import TOWERS, tower_of

ENCODERS = (*TOWERS, "both")
CHECKPOINTS = ("fp32", "fp16")
KINDS = ("all", "norm", "bias")
BLOCK = re.compile(r"\.(?:resblocks|blocks)\.(\d+)\.")
Value = TypeVar("Value")
BEFORE_BLOCKS = re.compile(r"(^|\.)(conv1|ln_pre|norm_pre|patch_embed|pos_embed|\w*token|\w*embedding|cls_emb)(\.|$)")


def tower_weights(backbone: Backbone, encoder: str = "both", kind: str = "all", first_block: int = 0) -> list[str]:
    """Names of weights of the towers, as the backbone's model calls them.

    Args:
        backbone: whose weights.
        encoder: of which towers, one of `ENCODERS`.
        kind: "all"; "norm": scale and shift of the LayerNorms; "bias": everything that is added.
        first_block: from which block on, counted from 1, with all that follows; 0: what stands before the blocks too.

    Raises:
        ValueError: an unknown encoder or kind; an image tower that has no such weights (a ResNet has neither blocks nor
            LayerNorms); or a model whose image tower is not its part `visual`.
    """
    for key, value, allowed in (("ENCODER", encoder, ENCODERS), ("KIND", kind, KINDS)):
        if value not in allowed:
            raise ValueError(f"{key} is {value!r}, but must be one of {', '.join(allowed)}")
    every = [name for name, _ in backbone.model.named_parameters()]
    names = [name for name in every if _is_of_kind(backbone.model, name, kind) and _block_of(name) >= first_block - 1]
    of_images = [name for name in names if tower_of(name) == "vision"]
    if not any(tower_of(name) == "vision" for name in every):
        raise ValueError(f"{backbone.name} has no part 'visual': which weights are its image tower's is not known")
    if encoder != "text" and (not of_images or (first_block and backbone.vision_width is None)):
        raise ValueError(
            f"{backbone.name} is a ResNet: its image tower has no {'blocks' if first_block else 'LayerNorms'} of which "
            "weights could be learned; set ENCODER to 'text', or choose a ViT"
        )
    return [name for name in names if tower_of(name) in (TOWERS if encoder == "both" else (encoder,))]


def _is_of_kind(model: nn.Module, name: str, kind: str) -> bool:
    if kind == "norm":
        return isinstance(model.get_submodule(name.rpartition(".")[0]), nn.LayerNorm)
    return kind == "all" or name.endswith("bias")


def _block_of(name: str) -> float:
    """The block of a parameter, counted from 0; before the blocks -1, after them infinity."""
    if match := BLOCK.search(f".{name}"):
        return int(match[1])
    return -1 if BEFORE_BLOCKS.search(name) else float("inf")


class KnownOnHost(Generic[Value]):
    """What is computed of a tensor as a Python value, once for each state of the tensor, since that waits for it.

    Args:
        compute: gives the value.
    """

    def __init__(self, compute: Callable[[Tensor], Value]):
        self._compute = compute
        self._known: tuple[Tensor, int, Value] | None = None

    def __call__(self, tensor: Tensor) -> Value:
        """The value of the tensor as it is now."""
        if self._known is None or self._known[0] is not tensor or self._known[1] != tensor._version:
            self._known = tensor, tensor._version, self._compute(tensor)
        return self._known[2]


class LearnedWeights(nn.Module):
    """Learned float32 copies of some weights of a backbone.

    Learned: `text.<name>` and `vision.<name>`, from the backbone's values, in full precision whatever the run's is.
    State: `averaged`, whether these are the average with the backbone's values already.

    Args:
        backbone: the frozen backbone; it is held, not owned.
        names: of its model's parameters.
        share: of the learned values in evaluation; the rest is the backbone's.

    Raises:
        ValueError: the share is not in [0, 1], or there is nothing to learn.
    """

    averaged: Tensor
    backbone: Backbone

    def __init__(self, backbone: Backbone, names: Sequence[str], share: float = 1.0):
        super().__init__()
        if not 0 <= share <= 1:
            raise ValueError(f"ALPHA is {share}, but must lie in [0, 1]")
        if not names:
            raise ValueError(f"{backbone.name} has no weights of this kind to learn")
        object.__setattr__(self, "backbone", backbone)
        self.share = share
        self.text, self.vision = nn.Module(), nn.Module()
        for name, value in backbone.original_weights(names).items():
            _put(self.vision if tower_of(name) == "vision" else self.text, name, nn.Parameter(value))
        self.register_buffer("averaged", torch.tensor(False))
        self._is_averaged: KnownOnHost[bool] = KnownOnHost(bool)
        self._average: tuple[list[int], dict[str, Tensor]] | None = None

    def learned(self) -> dict[str, Tensor]:
        """The learned values by the names of the model's parameters."""
        return {**dict(self.text.named_parameters()), **dict(self.vision.named_parameters())}

    def values(self) -> dict[str, Tensor]:
        """What the towers compute with: the learned values, in evaluation their average with the backbone's."""
        learned = self.learned()
        if self.training or self.share == 1 or self._is_averaged(self.averaged):
            return learned
        versions = [value._version for value in learned.values()]
        if self._average is None or self._average[0] != versions:
            self._average = versions, self.average()
        return self._average[1]

    @torch.no_grad()
    def average(self) -> dict[str, Tensor]:
        """`share * learned + (1 - share) * frozen`."""
        learned = self.learned()
        frozen = self.backbone.original_weights(list(learned))
        return {name: self.share * value + (1 - self.share) * frozen[name] for name, value in learned.items()}

    @torch.no_grad()
    def finish(self, half: bool) -> None:
        """Put the average into the place of what was learned: training is over.

        Args:
            half: keep the values in half precision from here on.
        """
        if self.share < 1 and not self.averaged:
            average = self.average()
            for name, value in self.learned().items():
                value.copy_(average[name])
        self.averaged.fill_(True)
        if half:
            convert_all(self)

    def train(self, mode: bool = True) -> "LearnedWeights":
        """Set the mode; training needs no average."""
        if mode:
            self._average = None
        return super().train(mode)


def _put(root: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Register a parameter under a dotted name."""
    *path, last = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    root.register_parameter(last, parameter)


class LearnedTowers(Method):
    """CLIP with learned weights in its towers and one template. At the start it is zero-shot CLIP.

    Learned: `learned.text.<name>`, `learned.vision.<name>`.

    Args:
        backbone: the frozen CLIP.
        classnames: the classes.
        template: the sentence of a class.
        names: which weights, such as those of `tower_weights`.
        share: as in `LearnedWeights`.
    """

    learned: LearnedWeights
    tokens: Tensor

    def __init__(
        self, backbone: Backbone, classnames: list[str], template: str, names: Sequence[str], share: float = 1.0
    ):
        learned = LearnedWeights(backbone, names, share)
        super().__init__(backbone.with_weights(learned.values), classnames)
        self.learned = learned
        self.register_buffer("tokens", backbone.tokenize(fill(template, classnames)), persistent=False)

    def text_features(self) -> Tensor:
        """Features (C, E) of the template's sentences."""
        return self.backbone.encode_text(self.tokens)


class LearnedTowersTrainer(MethodTrainer):
    """Trains a `LearnedTowers`: what it leaves is one checkpoint with the weights to evaluate.

    After the last epoch the average takes the place of what was learned, before the checkpoint is written; that one has
    no state of the optimiser, which is twice as large. Checkpoints of epochs before it (`TRAIN.CHECKPOINT_FREQ`) have
    all that an interrupted run needs.

    Class attributes:
        KEYS: the keys of every such method: `TEMPLATE`, the sentence of a class, empty for the data set's own;
            `ENCODER`, which towers learn; `ALPHA`, the share of the learned weights in evaluation; `CHECKPOINT`, the
            number format of the last checkpoint.
    """

    model: LearnedTowers
    checkpoint_dir = "learned_weights"
    KEYS = {"TEMPLATE": "", "ENCODER": "both", "ALPHA": 1.0, "CHECKPOINT": "fp32", "PREC": "amp"}

    def check_cfg(self, cfg: CfgNode) -> None:
        """Refuse an unknown format of the checkpoint."""
        super().check_cfg(cfg)
        wanted = cfg.TRAINER[self.config_node].CHECKPOINT
        if wanted not in CHECKPOINTS:
            raise ValueError(
                f"TRAINER.{self.config_node}.CHECKPOINT is {wanted!r}, but must be one of {', '.join(CHECKPOINTS)}"
            )

    @property
    def template(self) -> str:
        """The key TEMPLATE, or where that is empty the data set's own."""
        return self.settings.TEMPLATE or template_of(self.dm.dataset)

    def build_optim(self, trainable: list[nn.Parameter]) -> tuple[Optimizer, LRScheduler | None]:
        """As always. What MODEL.INIT_WEIGHTS gave is a start like any other, averaged or not."""
        self.model.learned.averaged.fill_(False)
        return super().build_optim(trainable)

    def save_model(self, epoch: int, *arguments, **options) -> None:
        """As always; the last checkpoint holds what is evaluated, and nothing else."""
        name, last = self.checkpoint_dir, epoch + 1 == self.max_epoch and not options.get("model_name")
        optim, sched = self._optims[name], self._scheds[name]
        if last:
            self.model.learned.finish(half=self.settings.CHECKPOINT == "fp16")
            self._optims[name] = self._scheds[name] = None
        super().save_model(epoch, *arguments, **options)
        self._optims[name], self._scheds[name] = optim, sched

"""DePT: a second head beside a method, which takes up what is particular to the classes of the training.

Zhang et al., "DePT: Decoupled Prompt Tuning", CVPR 2024 (arXiv 2309.07439).

It is a plug-in: `TRAINER.DEPT.ENABLED True` puts it over the method of each trainer that has this node. The head sees
features of images and of class sentences, each through an affine map of its own for each channel.

Shape legend: B images, C classes, E embedding width.
"""

from collections.abc import Container, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from adaptation.method import Method, percent_correct, rows_of_classes
from clip.precision import autocast_disabled, to_float32
from dassl.engine import TRAINER_REGISTRY

DEPT = {"DEPT": CfgNode({"ENABLED": False, "WEIGHT": 0.7})}  # what a trainer adds to its CONFIG
HEAD = ("linear_probe_proj.weight", "linear_probe_proj.bias")


class ChannelAffine(nn.Module):
    """A scale, from ones, and a bias, from zeros, for each of E channels."""

    def __init__(self, width: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, E) -> (B, E)."""
        return self.scale * x + self.bias


class DePTMethod(Method):
    """A method and a linear head on its features.

    Learned: what the host learns, under its names; `film_lp_img`, `film_lp_text`, scale and bias (E,) each;
    `linear_probe_proj` (C, E) with bias (C,). On classes that the head was not trained for the logits are the host's.

    Args:
        host: the method beneath.
        weight: share of the head in loss and logits, in [0, 1].

    Raises:
        ValueError: a weight out of range.
    """

    def __init__(self, host: Method, weight: float = 0.7):
        if not 0 <= weight <= 1:
            raise ValueError(f"TRAINER.DEPT.WEIGHT is {weight}, but must lie in [0, 1]")
        super().__init__(host.backbone, host.classnames)
        self.host, self.weight = host, weight
        self.checkpoint_names = host.checkpoint_names
        width = host.backbone.embed_dim
        self.film_lp_img, self.film_lp_text = ChannelAffine(width), ChannelAffine(width)
        self.linear_probe_proj = nn.Linear(width, len(host.classnames))
        self.knows_classes = True

    def official_name(self, own: str) -> str:
        """The host's names are its own."""
        name = own.removeprefix("host.")
        return name if name == own else self.host.official_name(name)

    def text_features(self) -> Tensor:
        """The host's features (C, E)."""
        return self.host.text_features()

    def image_features(self, images: Tensor) -> Tensor:
        """The host's features (B, E)."""
        return self.host.image_features(images)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The host's features."""
        return self.host.encode(images)

    def head(self, channels: ChannelAffine, x: Tensor) -> Tensor:
        """The head's logits (B, C) of features (B, E), not normalised."""
        with autocast_disabled(x):
            return self.linear_probe_proj(channels(to_float32(x)))

    def mixed(self, logits: Tensor, z: Tensor) -> Tensor:
        """The host's logits (B, C) and the head's of image features (B, E), by the weight."""
        return torch.lerp(logits, self.head(self.film_lp_img, z), self.weight)

    def logits(self, z: Tensor, t: Tensor) -> Tensor:
        """Mixed logits (B, C) if these are classes of the training, else the host's."""
        logits = self.host.logits(z, t)
        return self.mixed(logits, z) if self.knows_classes else logits

    def loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of the host's logits and of the head's, the latter for the images and for the sentences of
        their classes, by the weight; plus the host's `extra_loss`."""
        z, t = self.encode(images)
        logits = self.host.logits(z, t)
        of_image = t.expand(len(labels), -1, -1) if t.ndim == 2 else t
        sentences = of_image.take_along_dim(labels[:, None, None], dim=1)[:, 0]
        both = torch.cat([self.head(self.film_lp_img, z), self.head(self.film_lp_text, sentences)])
        losses = F.cross_entropy(logits, labels), F.cross_entropy(both, labels.repeat(2))
        loss = torch.lerp(*losses, self.weight) + self.host.extra_loss(images, z, t, logits)
        return loss, {"loss": loss, "acc": percent_correct(self.mixed(logits, z), labels)}

    def report(self) -> dict:
        """What the host reports, and whether the head has a part in the logits."""
        used = "host and head" if self.knows_classes else "host alone, for the head was trained on other classes"
        return {**self.host.report(), "dept": {"weight": self.weight, "logits": used}}

    def select_classes(self, state: Mapping[str, Tensor], trained: list[str]) -> Mapping[str, Tensor]:
        """The host's part, and the head's rows if all classes are among the trained ones; else no head."""
        state = self.host.select_classes(state, trained)
        if set(self.classnames) <= set(trained):
            return {**state, **{key: rows_of_classes(state[key], trained, self.classnames) for key in HEAD}}
        return {key: value for key, value in state.items() if key not in HEAD}

    def load_state_dict(self, state: Mapping[str, Tensor], strict: bool = True, assign: bool = False) -> None:
        """As for every method; a state without the head's rows (`select_classes`) leaves the logits to the host."""
        state = {key.removeprefix("module."): value for key, value in state.items()}
        self.knows_classes = HEAD[0] in state
        own = self.state_dict()
        super().load_state_dict(state if self.knows_classes else {**{key: own[key] for key in HEAD}, **state})


def with_dept(method: Method, keys: CfgNode) -> Method:
    """The method, under DePT where the `DEPT` node says so."""
    return DePTMethod(method, keys.WEIGHT) if keys.ENABLED else method


def check_dept(cfg: CfgNode, declared: Container[str]) -> None:
    """Refuse DePT over a trainer that does not take it.

    Args:
        cfg: the configuration.
        declared: names of the nodes that the trainer declares.
    """
    node = cfg.TRAINER.get("DEPT")
    if node and node.ENABLED and "DEPT" not in declared:
        hosts = ", ".join(name for name, cls in TRAINER_REGISTRY if "DEPT" in getattr(cls, "CONFIG", {}))
        raise ValueError(f"TRAINER.DEPT.ENABLED is True, but {cfg.TRAINER.NAME} does not take DePT; these do: {hosts}")


def check_dept_state(state: Mapping[str, Tensor], method: Method, path: str) -> None:
    """Refuse what was learned with DePT for a method without it, and the other way round."""
    there = any("film_lp_img." in key for key in state)
    if there != isinstance(method, DePTMethod):
        raise ValueError(
            f"{path} was trained {'with' if there else 'without'} DePT: evaluate it with TRAINER.DEPT.ENABLED {there}"
        )

"""APEX: deep visual prompts, a learned text context, a linear text adapter, and at evaluation a difficulty-weighted
ensemble with the frozen CLIP.

Yang, Ko, Yun, "Towards Difficulty-Agnostic Efficient Transfer Learning for Vision-Language Models", EMNLP 2024
(arXiv 2311.15569).

Shape legend: B images, C evaluated classes, J training classes, E embedding width, n prompt tokens, D tower width.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from adaptation.method import CONTEXT_NAMES, IMAGE_PROMPT_NAMES, TEXT_PROMPT_NAMES, Method
from adaptation.prompts import (
    Context,
    ContextInit,
    context_from_words,
    image_prompts,
    prompt_name,
    random_context,
    text_prompts,
)
from adaptation.templates import DEFAULT, fill
from adaptation.trainer import MethodTrainer
from clip.backbone import Backbone
from clip.precision import autocast_disabled
from dassl.engine import TRAINER_REGISTRY
from trainers.ivlp import prompt_sizes

MAX_WORDS = 16  # above this many tokens the context starts random
FROZEN_BRANCHES = ("clip", "official")
ENSEMBLES = ("both", "text", "visual", "none")

FROZEN_PROMPT_NAMES = {
    "frozen_image_prompts.tokens.0": "clip_model_temp.visual.VPT",
    "frozen_image_prompts.tokens.*": "clip_model_temp.visual.transformer.resblocks.*.VPT_shallow",
    "frozen_text_prompts.tokens.*": "clip_model_temp.transformer.resblocks.*.VPT_shallow",
}


def difficulty(trained: Tensor, evaluated: Tensor) -> tuple[Tensor, Tensor]:
    """How far each evaluated class is from the training classes, by frozen text features (any scale).

    Args:
        trained: (J, E).
        evaluated: (C, E).

    Returns:
        `d_nn` (C,), one minus the cosine to the nearest training class, not below 0; `d_avg` (C,), one minus the mean
        cosine (paper, section 3.3).
    """
    with autocast_disabled(trained):
        cosine = F.normalize(trained, dim=-1) @ F.normalize(evaluated, dim=-1).T
    return (1 - cosine.amax(dim=0)).clamp(min=0), 1 - cosine.mean(dim=0)


def adaptive_alpha(d_nn: Tensor, d_avg: Tensor, beta: float, eps: float) -> Tensor:
    """The weight alpha (C,) of the adapted features: `exp(-beta d_avg)` where `d_nn > eps`, else 1."""
    return torch.exp(-beta * d_avg * (d_nn > eps))


def apex_context(backbone: Backbone, classnames: list[str], n: int, init: str) -> ContextInit:
    """APEX's start: the first n words of `init`, in which `#` stands for the class name, or random."""
    if not init or n > MAX_WORDS:
        return random_context(backbone, n, classnames)
    if "#" not in init:
        raise ValueError(f"CTX_INIT {init!r} has no '#' to stand for the class name")
    words = init.split("#")[0].strip()
    return context_from_words(backbone, words, n, [init.replace("#", prompt_name(name)) for name in classnames])


class APEXMethod(Method):
    """The learned state of APEX.

    Learned: `image_prompts` (n_v, D_v) per block, `context.vectors` (n_t, D_t), `text_prompts` (only with a text depth
    above 1), `adapter_matrix` (E, E), `adapter_bias` (1, E).

    Args:
        backbone: the frozen CLIP.
        classnames: the classes; when training, also those that distances are measured to later.
        n_text: context tokens. n_vision: visual prompt tokens per block.
        depth_text: prompted text blocks, at least 1. depth_vision: prompted image blocks.
        init: the sentence that the context starts from, `#` for the class name.
        beta: sharpness of alpha. eps: the nearest-class distance from which a class counts as unseen.
        frozen_branch: "clip" (the paper: the plain CLIP) or "official" (the released code: a CLIP with untrained random
            prompts, drawn once and kept in the checkpoint).
        ensemble: which sides are mixed with the frozen CLIP at evaluation: "both", "text", "visual", "none".
        fixed_alpha: a constant in [0, 1] in place of alpha for every evaluated class, or None.

    Raises:
        ValueError: a value out of range (named), or a backbone without token slots for images.
    """

    checkpoint_names = {
        **IMAGE_PROMPT_NAMES,
        **TEXT_PROMPT_NAMES,
        **CONTEXT_NAMES,
        "adapter_matrix": "VPT_adapter_text_matrix",
        "adapter_bias": "VPT_adapter_text_bias",
        "trained_tokens": "prompt_learner.trained_tokenized_prompts",
    }

    tokens: Tensor
    trained_tokens: Tensor

    def __init__(
        self,
        backbone: Backbone,
        classnames: list[str],
        n_text: int = 2,
        n_vision: int = 2,
        depth_text: int = 1,
        depth_vision: int = 12,
        init: str = "a photo of a #.",
        beta: float = 4.0,
        eps: float = 0.05,
        frozen_branch: str = "clip",
        ensemble: str = "both",
        fixed_alpha: float | None = None,
    ):
        super().__init__(backbone, classnames)
        _check_choice("FROZEN_BRANCH", frozen_branch, FROZEN_BRANCHES)
        _check_choice("ENSEMBLE", ensemble, ENSEMBLES)
        if fixed_alpha is not None and not 0 <= fixed_alpha <= 1:
            raise ValueError(f"FIXED_ALPHA is {fixed_alpha}, but must lie in [0, 1] (or be -1 for the adaptive alpha)")
        if beta < 0 or eps < 0 or n_text < 1:
            raise ValueError(f"BETA {beta} and EPS {eps} must not be negative, and N_CTX_TEXT {n_text} at least 1")
        self.beta, self.eps, self.fixed_alpha = beta, eps, fixed_alpha
        self.mix_text = ensemble in ("both", "text")
        self.mix_images = ensemble in ("both", "visual")
        self.context = Context(backbone, apex_context(backbone, classnames, n_text, init))
        self.image_prompts = image_prompts(backbone, depth_vision, n_vision)
        self.text_prompts = text_prompts(backbone, depth_text, n_text)
        self.adapter_matrix = nn.Parameter(torch.eye(backbone.embed_dim))
        self.adapter_bias = nn.Parameter(torch.zeros(1, backbone.embed_dim))
        # the frozen features are those of the ordinary sentence; without words to start from, of `a photo of a {}.`
        plain = (
            self.context.tokens if "#" in init and n_text <= MAX_WORDS else backbone.tokenize(fill(DEFAULT, classnames))
        )
        self.register_buffer("tokens", plain, persistent=False)
        self.register_buffer("trained_tokens", plain.clone())
        official = frozen_branch == "official"
        if official:
            self.checkpoint_names = {**self.checkpoint_names, **FROZEN_PROMPT_NAMES}
        self.frozen_image_prompts = image_prompts(backbone, depth_vision if official else 0, n_vision, trainable=False)
        self.frozen_text_prompts = text_prompts(backbone, depth_text if official else 1, n_text, trainable=False)

    def begin_training(self) -> None:
        """The classes that are trained on are this model's own, whatever a checkpoint to start from was trained on."""
        self.trained_tokens = self.tokens.clone()

    def adapter_input(self) -> Tensor:
        """`t_pre` (C, E): features of the sentences with the learned context, before the adapter."""
        return self.backbone.encode_embeddings(self.context(), self.context.layout, self.text_prompts())

    def text_features(self) -> Tensor:
        """Features (C, E): the adapter's output; in evaluation mixed with its input by alpha."""
        t_pre = self.adapter_input()
        with autocast_disabled(t_pre):
            t = t_pre @ self.adapter_matrix + self.adapter_bias
        if self.training or not self.mix_text:
            return t
        alpha = self.ensemble_weights()["alpha"][:, None]
        return alpha * t + (1 - alpha) * t_pre

    def frozen_image_features(self, images: Tensor) -> Tensor:
        """`z'` (B, E): images through the frozen branch."""
        return self.backbone.encode_image(images, self.frozen_image_prompts())

    def image_features(self, images: Tensor) -> Tensor:
        """Features (B, E): prompted; in evaluation mixed with the frozen ones by the mean of alpha."""
        z = self.backbone.encode_image(images, self.image_prompts())
        if self.training or not self.mix_images:
            return z
        weight = self.ensemble_weights()["weight"]
        # every evaluated class was seen in training: the frozen pass would get weight 0
        return z if weight == 1 else weight * z + (1 - weight) * self.frozen_image_features(images)

    def frozen_text_features(self, tokens: Tensor) -> Tensor:
        """Features (N, E) of the frozen text encoder for token ids (N, L)."""
        return self.backbone.encode_text(tokens, self.frozen_text_prompts())

    def seen(self) -> Tensor:
        """Which of the evaluated classes were trained on, (C,), by their tokens."""
        return (self.tokens[:, None] == self.trained_tokens).all(dim=-1).any(dim=1)

    def distances(self) -> dict[str, Tensor]:
        """`d_nn` and `d_avg` (C,), see `difficulty`; computed once per evaluation."""
        return self.cached_in_eval("distances", self._distances)

    @torch.no_grad()
    def _distances(self) -> dict[str, Tensor]:
        both, rows = torch.cat([self.trained_tokens, self.tokens]).unique(dim=0, return_inverse=True)
        trained, evaluated = self.frozen_text_features(both)[rows].tensor_split([len(self.trained_tokens)])
        d_nn, d_avg = difficulty(trained, evaluated)
        # what rounding makes of the distance of a sentence to itself
        return {"d_nn": d_nn.masked_fill(self.seen(), 0), "d_avg": d_avg}

    def ensemble_weights(self) -> dict:
        """`alpha` (C,) and `weight`, its mean; computed once per evaluation."""
        return self.cached_in_eval("ensemble weights", self._ensemble_weights)

    def _ensemble_weights(self) -> dict:
        if self.fixed_alpha is not None:
            alpha = torch.full((len(self.tokens),), self.fixed_alpha, device=self.tokens.device)
        elif self.seen().all():  # the nearest class is at distance 0
            alpha = torch.ones(len(self.tokens), device=self.tokens.device)
        else:
            alpha = adaptive_alpha(**self.distances(), beta=self.beta, eps=self.eps)
        return {"alpha": alpha, "weight": alpha.mean().item()}

    def loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy without any ensemble."""
        loss, _ = super().loss(images, labels)
        return loss, {"loss": loss}

    def report(self) -> dict:
        """Distances and alpha of each evaluated class."""
        was_training = self.training
        self.eval()
        values = {"alpha": self.ensemble_weights()["alpha"], **self.distances()}
        self.train(was_training)
        return {"apex": {"classnames": self.classnames, **{key: value.tolist() for key, value in values.items()}}}

    def load_state_dict(self, state: Mapping[str, Tensor], strict: bool = True, assign: bool = False) -> None:
        """As for every method; the training classes may be of another number than this model's own."""
        key = self.official_name("trained_tokens")
        if key in state:
            self.trained_tokens = state[key].to(self.tokens)
        super().load_state_dict(state)


def _check_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"TRAINER.APEX.{key} is {value!r}, but must be one of {', '.join(choices)}")


@TRAINER_REGISTRY.register()
class APEX(MethodTrainer):
    """Trains APEX."""

    checkpoint_dir = "VLPromptLearner"
    CONFIG = {
        "APEX": CfgNode(
            {
                "N_CTX_VISION": 2,
                "N_CTX_TEXT": 2,
                "CTX_INIT": "a photo of a #.",
                "PREC": "fp16",
                "PROMPT_DEPTH_VISION": 12,
                "PROMPT_DEPTH_TEXT": 1,
                "BETA": 4.0,
                "EPS": 0.05,
                "FROZEN_BRANCH": "clip",
                "ENSEMBLE": "both",
                "FIXED_ALPHA": -1.0,  # -1: adaptive
            }
        )
    }

    def build_method(self, backbone: Backbone, classnames: list[str]) -> Method:
        """APEX as the keys say."""
        return apex_from_keys(backbone, classnames, self.settings)


def apex_from_keys(backbone: Backbone, classnames: list[str], keys: CfgNode) -> APEXMethod:
    """The method from a `TRAINER.APEX` node."""
    return APEXMethod(
        backbone,
        classnames,
        **prompt_sizes(keys),
        beta=keys.BETA,
        eps=keys.EPS,
        frozen_branch=keys.FROZEN_BRANCH,
        ensemble=keys.ENSEMBLE,
        fixed_alpha=None if keys.FIXED_ALPHA == -1 else keys.FIXED_ALPHA,
    )

"""TCP: a learned context, and tokens of each class that a small network makes of its frozen features.

Yao, Zhang, Xu, "TCP: Textual-based Class-aware Prompt tuning for Visual-Language Model", CVPR 2024 (arXiv 2311.18231).

Shape legend: C classes, E embedding width, n context tokens, D_t text width.
"""

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from yacs.config import CfgNode

from adaptation.method import CONTEXT_NAMES, Method
from adaptation.prompts import PLACEHOLDER, ContextInit, context_from_words, prompt_name, random_vectors
from adaptation.templates import template_of
from adaptation.trainer import MethodTrainer
from clip.backbone import Backbone
from clip.model import QuickGELU
from dassl.engine import TRAINER_REGISTRY
from trainers.coop import ContextMethod
from trainers.zsclip import template_features

# what follows the context in the method's own sentences, by data set
ENDINGS = {
    "OxfordPets": "{}, a type of pet.",
    "OxfordFlowers": "{}, a type of flower.",
    "FGVCAircraft": "{}, a type of aircraft.",
    "DescribableTextures": "{} texture.",
    "StanfordCars": "{}, a type of car",
    "Food101": "{}, a type of food.",
    "UCF101": "person doing {}.",
}
# the sentences of the frozen features, where they differ from the data sets'
TEMPLATES = {
    "FGVCAircraft": "a photo of an aircraft {}.",
    "DescribableTextures": "a photo of a {}, a type of texture.",
    "Food101": "a photo of a {}, a type of food.",
}


def tcp_context(backbone: Backbone, classnames: list[str], n: int, init: str, ending: str) -> ContextInit:
    """A context of n vectors before `ending`, random or from the first n words of `init`.

    Raises:
        ValueError: n is below 1, or above the number of words.
    """
    if n < 1:
        raise ValueError(f"TRAINER.TCP.N_CTX is {n}, but must be at least 1")
    words = init.replace("_", " ") or " ".join([PLACEHOLDER] * n)
    sentences = [f"{words} {ending.format(prompt_name(name))}" for name in classnames]
    if init:
        return context_from_words(backbone, words, n, sentences)
    return ContextInit(random_vectors(n, backbone.text_width), sentences)


class TCPMethod(ContextMethod):
    """A context shared by all classes that a deep block replaces by tokens of the class.

    Learned: `context.vectors` (n, D_t); `meta_net.linear1` E -> E // 4, `meta_net.linear2` E // 4 -> n D_t.

    Args:
        backbone: the frozen CLIP.
        classnames: the classes.
        template: the sentence of the frozen features (C, E), of which the class tokens are made.
        ending: what follows the context in a sentence, with the class name's place.
        n_ctx: context tokens, and tokens of a class.
        init: the words that the context starts from, or empty.
        layer: the text block, from 0, before which the class tokens take the context's place; in a tower of fewer
            blocks the last one.
        weight: of the distance to the frozen features.

    Raises:
        ValueError: a number out of range (named).
    """

    frozen: Tensor
    checkpoint_names = {**CONTEXT_NAMES, "meta_net.*.*": "prompt_learner.meta_net.*.*"}

    def __init__(
        self,
        backbone: Backbone,
        classnames: list[str],
        template: str,
        ending: str = "{}.",
        n_ctx: int = 4,
        init: str = "",
        layer: int = 8,
        weight: float = 8.0,
    ):
        super().__init__(backbone, classnames, tcp_context(backbone, classnames, n_ctx, init, ending))
        if layer < 1:
            raise ValueError(f"TRAINER.TCP.LAYER is {layer}, but must be at least 1")
        self.layer = min(layer, backbone.text_layers - 1)
        self.weight = weight
        hidden = backbone.embed_dim // 4
        self.meta_net = nn.Sequential(
            OrderedDict(
                linear1=nn.Linear(backbone.embed_dim, hidden),
                gelu=QuickGELU(),
                linear2=nn.Linear(hidden, n_ctx * backbone.text_width),
            )
        )
        frozen = F.normalize(template_features(backbone, template, classnames), dim=-1)
        self.register_buffer("frozen", frozen, persistent=False)

    def class_tokens(self) -> Tensor:
        """The tokens of each class, (C, n, D_t)."""
        return self.meta_net(self.frozen).unflatten(-1, self.context.vectors.shape)

    def text_features(self) -> Tensor:
        """Features (C, E) of the sentences with the learned context and, from `layer` on, the class tokens."""
        prompts = [None] * self.layer + [self.class_tokens()]
        return self.backbone.encode_embeddings(self.context(), self.context.layout, prompts)

    def extra_loss(self, images: Tensor, z: Tensor, t: Tensor, logits: Tensor) -> Tensor:
        """The weighted mean of one minus the cosine to the frozen features."""
        return self.weight * (1 - F.cosine_similarity(t, self.frozen, dim=-1).mean())


@TRAINER_REGISTRY.register()
class TCP(MethodTrainer):
    """Trains TCP. The kinds of Adam have an epsilon of the method's own, far above the usual one."""

    CONFIG = {"TCP": CfgNode({"N_CTX": 4, "CTX_INIT": "", "LAYER": 8, "W": 8.0, "ADAM_EPS": 1e-3, "PREC": "fp16"})}

    def build_method(self, backbone: Backbone, classnames: list[str]) -> Method:
        """TCP as the keys say."""
        keys, name = self.settings, self.cfg.DATASET.NAME
        template = TEMPLATES.get(name) or template_of(self.dm.dataset)
        sizes = (keys.N_CTX, keys.CTX_INIT, keys.LAYER, keys.W)
        return TCPMethod(backbone, classnames, template, ENDINGS.get(name, "{}."), *sizes)

    def build_optim(self, trainable: list[nn.Parameter]) -> tuple[Optimizer, LRScheduler | None]:
        """As OPTIM says, with the method's epsilon."""
        optim, sched = super().build_optim(trainable)
        if self.cfg.OPTIM.NAME in ("adam", "adamw", "amsgrad"):
            for group in optim.param_groups:
                group["eps"] = self.settings.ADAM_EPS
        return optim, sched

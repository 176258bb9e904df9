"""ProGrad: CoOp whose steps do not work against zero-shot CLIP.

Zhu et al., "Prompt-aligned Gradient for Prompt Tuning", ICCV 2023 (arXiv 2205.14865).

Shape legend: B images, C classes, E embedding width, n context tokens, D_t text width.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from yacs.config import CfgNode

from adaptation.method import Method, percent_correct
from adaptation.prompts import PLACEHOLDER, ContextInit, prompt_name, random_context
from adaptation.templates import template_of
from adaptation.trainer import MethodTrainer
from clip.backbone import Backbone
from dassl.engine import TRAINER_REGISTRY
from trainers.coop import ContextMethod
from trainers.zsclip import template_features

# the method's own sentences where they differ from the data sets'
TEMPLATES = {
    "OxfordPets": "a type of pet, a photo of a {}.",
    "OxfordFlowers": "a type of flower, a photo of a {}.",
    "FGVCAircraft": "a type of aircraft, a photo of a {}.",
    "Food101": "a type of food, a photo of {}.",
    "DescribableTextures": "a texture of {}.",
}
NAME = " {}."  # a template must end so for its words to stand before the name


def prograd_context(backbone: Backbone, classnames: list[str], n: int, template: str) -> ContextInit:
    """ProGrad's start: the template's words in the last of n slots, zeros before them.

    As in the released code a slot stands for a word; where a word is more than one token, the last tokens stay in the
    sentence as fixed ones, so that it reads the same.

    Raises:
        ValueError: the template does not end in the class name, or has more than n words.
    """
    if not template.endswith(NAME):
        raise ValueError(
            f"the context cannot start from the words of {template!r}, which does not end in {NAME!r}: set "
            "TRAINER.PROGRAD.CTX_INIT to False or choose another DATASET.TEMPLATE"
        )
    words = template.removesuffix(NAME)
    count = len(words.split())
    if count > n:
        raise ValueError(f"TRAINER.PROGRAD.N_CTX is {n}, but the words that it starts from are {count}: {words!r}")
    vectors = torch.zeros(n, backbone.text_width, device=backbone.device)
    start = backbone.context_start
    vectors[n - count :] = backbone.token_embedding(backbone.tokenize([words]))[0, start : start + count]
    prefix = " ".join([*[PLACEHOLDER] * (n - count), words])
    return ContextInit(vectors, [f"{prefix} {prompt_name(name)}." for name in classnames])


def without_conflict(gradient: Tensor, reference: Tensor, strength: float = 1.0) -> Tensor:
    """A gradient without what points against a reference gradient of the same shape (paper, equation 5).

    Where their product is negative, `strength` times the projection on the reference is taken away. A reference of zero
    changes nothing.
    """
    direction = F.normalize(reference.flatten(), dim=0).view_as(reference)
    against = (gradient * direction).sum().clamp(max=0)
    return gradient - strength * against * direction


class ProGradMethod(ContextMethod):
    """A context shared by all classes, and two losses whose gradients the trainer combines.

    Learned: `context.vectors` (n, D_t).

    Args:
        backbone: the frozen CLIP.
        classnames: the classes.
        template: the sentence of zero-shot CLIP, and of the start.
        n_ctx: context tokens.
        from_words: start from the template's words rather than random.
        temperature: of the softmax in the second loss (T in the paper).
    """

    def __init__(
        self,
        backbone: Backbone,
        classnames: list[str],
        template: str,
        n_ctx: int = 16,
        from_words: bool = True,
        temperature: float = 1.0,
    ):
        start = (
            prograd_context(backbone, classnames, n_ctx, template)
            if from_words
            else random_context(backbone, n_ctx, classnames)
        )
        super().__init__(backbone, classnames, start)
        self.template = template
        self.temperature = temperature
        self.register_buffer("frozen", None, persistent=False)

    def begin_training(self) -> None:
        """Encode the sentences of zero-shot CLIP, (C, E)."""
        self.frozen = template_features(self.backbone, self.template, self.classnames)

    def loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Two losses (2,): cross-entropy with the labels, and with the zero-shot distribution (paper, equation 3)."""
        z = self.image_features(images)
        logits = self.logits(z, self.text_features())
        xe = F.cross_entropy(logits, labels)
        zero_shot = F.softmax(self.logits(z, self.frozen) / self.temperature, dim=-1)
        kl = self.temperature**2 * F.cross_entropy(logits / self.temperature, zero_shot)
        summary = {"loss": xe, "xe_loss": xe, "kl_loss": kl, "acc": percent_correct(logits, labels)}
        return torch.stack([xe, kl]), summary


@TRAINER_REGISTRY.register()
class ProGrad(MethodTrainer):
    """Trains ProGrad."""

    CONFIG = {"PROGRAD": CfgNode({"N_CTX": 16, "CTX_INIT": True, "PREC": "fp16", "T": 1.0, "LAMBDA": 1.0})}

    def build_method(self, backbone: Backbone, classnames: list[str]) -> Method:
        """ProGrad as the keys say."""
        keys = self.settings
        template = TEMPLATES.get(self.cfg.DATASET.NAME) or template_of(self.dm.dataset)
        return ProGradMethod(backbone, classnames, template, keys.N_CTX, keys.CTX_INIT, keys.T)

    def combined_gradient(self, gradients: Sequence[Tensor]) -> Tensor:
        """The gradient of the first loss, without what points against that of the second."""
        first, second = gradients
        return without_conflict(first, second, self.settings.LAMBDA)

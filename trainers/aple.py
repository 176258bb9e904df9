"""APLe: free prompts in both towers, which take turns in three updates a batch, and images mixed with their low pass.

Cao et al., "APLe: Token-Wise Adaptive for Multi-Modal Prompt Learning", 2024 (arXiv 2401.06827).

Shape legend: B images, C classes, E embedding width, n context or prompt tokens, D_t and D_v tower widths.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from adaptation.method import Method
from adaptation.prompts import Context, random_vectors, slot_width
from adaptation.templates import template_of
from adaptation.trainer import MethodTrainer
from clip.backbone import Backbone
from clip.precision import to_float32
from dassl.engine import TRAINER_REGISTRY
from trainers.ivlp import ivlp_context
from trainers.prograd import TEMPLATES
from trainers.zsclip import template_features

FILTERS = ("lowpass", "published")


def low_pass(images: Tensor, sigma: float) -> Tensor:
    """Images (B, 3, H, W) times a Gaussian of deviation `sigma` in the frequency domain, in cycles per pixel."""
    height, width = images.shape[-2:]
    vertical = torch.fft.fftfreq(height, device=images.device)[:, None]
    horizontal = torch.fft.rfftfreq(width, device=images.device)
    gain = torch.exp(-(vertical**2 + horizontal**2) / (2 * sigma**2))
    return torch.fft.irfft2(torch.fft.rfft2(images) * gain, s=(height, width))


class APLeMethod(Method):
    """Prompts of both towers that no projection couples, on images that are mixed with their low pass.

    Learned: `context.vectors` (n, D_t), `text_prompts.i` (n, D_t) for text block i + 1, `image_prompt` (n, D_v) at the
    input of the image tower, `image_prompts.i` (n, D_v) for image block i + 1. The depth is cut to a tower's blocks.

    Args:
        backbone: the frozen CLIP.
        classnames: the classes.
        template: the sentence of zero-shot CLIP.
        n: context tokens, and prompt tokens per block of either tower.
        depth: prompted blocks of either tower, at least 1.
        init: the words before the class name that the context starts from, or empty.
        image_filter: "lowpass", or "published" for what the released file computes: its filter leaves next to nothing.
        share: of the image itself beside its filtered one (beta).
        sigma: of the filter, in cycles per pixel.

    Attributes:
        zero_shot_weight: of the cross-entropy with the zero-shot distribution; another one for each update.

    Raises:
        ValueError: a value out of range (named), or an image tower without token slots.
    """

    checkpoint_names = {
        "context.vectors": "prompt_learner.compound_prompts_text_ctx",
        "text_prompts.*": "prompt_learner.compound_prompts_text.*",
        "image_prompt": "prompt_learner.compound_prompts_vision_shareI",
        "image_prompts.*": "prompt_learner.compound_prompts_vision.*",
    }

    def __init__(
        self,
        backbone: Backbone,
        classnames: list[str],
        template: str,
        n: int = 2,
        depth: int = 9,
        init: str = "a photo of a",
        image_filter: str = "lowpass",
        share: float = 0.9,
        sigma: float = 0.05,
    ):
        super().__init__(backbone, classnames)
        if depth < 1:
            raise ValueError(f"TRAINER.APLE.PROMPT_DEPTH is {depth}, but must be at least 1")
        if image_filter not in FILTERS:
            raise ValueError(f"TRAINER.APLE.FILTER is {image_filter!r}, but must be one of {', '.join(FILTERS)}")
        self.image_filter, self.share, self.sigma, self.template = image_filter, share, sigma, template
        self.zero_shot_weight = 0.0
        text, vision = (n, backbone.text_width), (n, slot_width(backbone))
        self.context = Context(backbone, ivlp_context(backbone, classnames, n, init))
        self.text_prompts = nn.ParameterList(random_vectors(*text) for _ in range(1, min(depth, backbone.text_layers)))
        self.image_prompt = nn.Parameter(random_vectors(*vision))
        in_vision = min(depth, backbone.vision_layers)
        self.image_prompts = nn.ParameterList(random_vectors(*vision) for _ in range(1, in_vision))
        self.register_buffer("frozen", None, persistent=False)

    def begin_training(self) -> None:
        """Encode the sentences of zero-shot CLIP, (C, E)."""
        self.frozen = template_features(self.backbone, self.template, self.classnames)

    def filtered(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) mixed with their low pass."""
        mixed = self.share * images
        if self.image_filter == "published":
            return mixed
        return mixed + (1 - self.share) * low_pass(to_float32(images), self.sigma)

    def text_features(self) -> Tensor:
        """Features (C, E) of the sentences with learned context and deep prompts."""
        prompts = [None, *self.text_prompts]
        return self.backbone.encode_embeddings(self.context(), self.context.layout, prompts)

    def image_features(self, images: Tensor) -> Tensor:
        """Features (B, E) of the filtered images (B, 3, H, W) with prompts."""
        prompts = [self.image_prompt, *self.image_prompts]
        return self.backbone.encode_image(self.filtered(images), prompts)

    def extra_loss(self, images: Tensor, z: Tensor, t: Tensor, logits: Tensor) -> Tensor | float:
        """The weighted cross-entropy with the zero-shot distribution of the unfiltered images."""
        if not self.zero_shot_weight:
            return 0.0
        with torch.no_grad():
            zero_shot = F.softmax(self.logits(self.backbone.encode_image(images), self.frozen), dim=-1)
        return self.zero_shot_weight * F.cross_entropy(logits, zero_shot)


@TRAINER_REGISTRY.register()
class APLe(MethodTrainer):
    """Trains APLe: of a batch come an update of the text prompts, one of the image prompts, and one of both.

    An optimiser passes over what has no gradient. So one optimiser over both groups does what two of the same settings
    do: its momentum and weight decay act twice per batch on each group.
    """

    model: APLeMethod
    checkpoint_dir = "MultiModalPromptLearner"
    CONFIG = {
        "APLE": CfgNode(
            {
                "N_CTX": 2,
                "CTX_INIT": "a photo of a",
                "PREC": "fp16",
                "PROMPT_DEPTH": 9,
                "FILTER": "lowpass",
                "BETA": 0.9,  # share of the image itself beside its filtered one
                "SIGMA": 0.05,  # of the filter, in cycles per pixel
                "W_TEXT": 0.5,  # of the second loss, in the update of the text prompts
                "W_IMAGE": 0.4,  # likewise, of the image prompts
            }
        )
    }
    updated = "both"  # whose prompts the current update moves

    def build_method(self, backbone: Backbone, classnames: list[str]) -> Method:
        """APLe as the keys say."""
        keys = self.settings
        template = TEMPLATES.get(self.cfg.DATASET.NAME) or template_of(self.dm.dataset)
        sizes = (keys.N_CTX, keys.PROMPT_DEPTH, keys.CTX_INIT)
        return APLeMethod(backbone, classnames, template, *sizes, keys.FILTER, keys.BETA, keys.SIGMA)

    def forward_backward(self, batch) -> dict:
        """The three updates, each with a forward pass of its own; logs the last one, and the loss of each."""
        images, labels = self.parse_batch_train(batch)
        keys, losses = self.settings, {}
        for self.updated, weight in (("text", keys.W_TEXT), ("image", keys.W_IMAGE), ("both", 0.0)):
            self.model.zero_shot_weight = weight
            self.model_zero_grad()
            summary = self.compute_gradients(images, labels)
            self.model_update()
            losses[f"{self.updated}_loss"] = summary["loss"]
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {**losses, **summary}

    def model_update(self, names=None) -> None:
        """One step of the prompts whose turn it is; the others lose their gradient."""
        for name, parameter in self.model.named_parameters():
            if self.updated not in ("both", "image" if name.startswith("image") else "text"):
                parameter.grad = None
        super().model_update(names)

"""MaPLe: learned context and deep text prompts, from which linear maps make the visual prompts.

Khattak et al., "MaPLe: Multi-modal Prompt Learning", CVPR 2023 (arXiv 2210.03117).

Shape legend: B images, C classes, E embedding width, n context or prompt tokens, D_t and D_v tower widths.
"""

from copy import deepcopy

from torch import Tensor, nn
from yacs.config import CfgNode

from adaptation.dept import DEPT, with_dept
from adaptation.method import CONTEXT_NAMES, Method
from adaptation.prompts import Context, random_vectors, slot_width
from adaptation.trainer import MethodTrainer
from clip.backbone import Backbone
from dassl.engine import TRAINER_REGISTRY
from trainers.ivlp import ivlp_context


class MaPLeMethod(Method):
    """Text prompts that are learned, visual prompts that are mapped from them.

    Learned: `context.vectors` (n, D_t) and its map `proj` D_t -> D_v, for block 0; `compound_prompts_text.k` (n, D_t)
    and its map `compound_prompt_projections.k` D_t -> D_v, for block `k + 1`, `k = 0 .. depth - 2`. What lies beyond
    the last block of its tower is kept, as official checkpoints have it, but takes no part and is not trained.

    Args:
        backbone: the frozen CLIP.
        classnames: the classes.
        n: context tokens, and prompt tokens per block of either tower.
        depth: prompted blocks of either tower, at least 1.
        init: the words before the class name that the context starts from, or empty.

    Raises:
        ValueError: a number out of range (named), or an image tower without token slots.
    """

    checkpoint_names = {
        **CONTEXT_NAMES,
        "proj.*": "prompt_learner.proj.*",
        "compound_prompts_text.*": "prompt_learner.compound_prompts_text.*",
        "compound_prompt_projections.*.*": "prompt_learner.compound_prompt_projections.*.*",
    }

    def __init__(
        self, backbone: Backbone, classnames: list[str], n: int = 2, depth: int = 9, init: str = "a photo of a"
    ):
        super().__init__(backbone, classnames)
        if depth < 1:
            raise ValueError(f"TRAINER.MAPLE.PROMPT_DEPTH is {depth}, but must be at least 1")
        text_width, vision_width = backbone.text_width, slot_width(backbone)
        self.context = Context(backbone, ivlp_context(backbone, classnames, n, init))
        self.proj = nn.Linear(text_width, vision_width)
        one = nn.Linear(text_width, vision_width)  # all deep maps start as copies of it
        self.compound_prompts_text = nn.ParameterList(random_vectors(n, text_width) for _ in range(1, depth))
        self.compound_prompt_projections = nn.ModuleList(deepcopy(one) for _ in range(1, depth))
        # counted from block 1, as the two lists are
        in_vision, in_either = backbone.vision_layers - 1, max(backbone.text_layers, backbone.vision_layers) - 1
        self.compound_prompt_projections[in_vision:].requires_grad_(False)
        for prompt in self.compound_prompts_text[in_either:]:
            prompt.requires_grad_(False)

    def text_prompts(self) -> list[Tensor | None]:
        """One entry per prompted text block, (n, D_t); None for block 0, which has the context."""
        return [None, *self.compound_prompts_text][: self.backbone.text_layers]

    def image_prompts(self) -> list[Tensor]:
        """One entry per prompted image block, (n, D_v)."""
        maps = [self.proj, *self.compound_prompt_projections]
        prompts = [self.context.vectors, *self.compound_prompts_text]
        return [maps[i](prompts[i]) for i in range(min(len(maps), self.backbone.vision_layers))]

    def text_features(self) -> Tensor:
        """Features (C, E) of the sentences with learned context and deep prompts."""
        return self.backbone.encode_embeddings(self.context(), self.context.layout, self.text_prompts())

    def image_features(self, images: Tensor) -> Tensor:
        """Features (B, E) of images (B, 3, H, W) with the mapped prompts."""
        return self.backbone.encode_image(images, self.cached_in_eval("image prompts", self.image_prompts))


@TRAINER_REGISTRY.register()
class MaPLe(MethodTrainer):
    """Trains MaPLe."""

    checkpoint_dir = "MultiModalPromptLearner"
    CONFIG = {"MAPLE": CfgNode({"N_CTX": 2, "CTX_INIT": "a photo of a", "PREC": "fp16", "PROMPT_DEPTH": 9}), **DEPT}

    def build_method(self, backbone: Backbone, classnames: list[str]) -> Method:
        """MaPLe as the keys say."""
        keys = self.settings
        method = MaPLeMethod(backbone, classnames, keys.N_CTX, keys.PROMPT_DEPTH, keys.CTX_INIT)
        return with_dept(method, self.cfg.TRAINER.DEPT)

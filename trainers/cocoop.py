"""CoCoOp: a learned context that is shifted by each image's features.

Zhou et al., "Conditional Prompt Learning for Vision-Language Models", CVPR 2022 (arXiv 2203.05557).

Shape legend: B images, C classes, L tokens, n context tokens, D_t text width, E embedding width.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from adaptation.dept import DEPT, with_dept
from adaptation.method import CONTEXT_NAMES, Method
from adaptation.prompts import Context
from adaptation.trainer import MethodTrainer
from clip.backbone import Backbone
from dassl.engine import TRAINER_REGISTRY
from trainers.coop import coop_context

MAX_SENTENCES = 1024  # encoded at once, or the C of one image: bounds the memory of a batch of B x C sentences


class CoCoOpMethod(Method):
    """One context for all classes plus a shift that a small network makes of the image.

    Learned: `context.vectors` (n, D_t); `meta_net.linear1` E -> E // 16, `meta_net.linear2` E // 16 -> D_t.

    Args:
        backbone: the frozen CLIP.
        classnames: the classes.
        n_ctx: context tokens, if the context starts random.
        init: the words before the class name that the context starts from (all of them), or empty.
    """

    checkpoint_names = {**CONTEXT_NAMES, "meta_net.*.*": "prompt_learner.meta_net.*.*"}

    def __init__(self, backbone: Backbone, classnames: list[str], n_ctx: int = 16, init: str = ""):
        super().__init__(backbone, classnames)
        self.context = Context(backbone, coop_context(backbone, classnames, n_ctx, init))
        hidden = backbone.embed_dim // 16
        self.meta_net = nn.Sequential(
            OrderedDict(
                linear1=nn.Linear(backbone.embed_dim, hidden),
                relu=nn.ReLU(),
                linear2=nn.Linear(hidden, backbone.text_width),
            )
        )

    def shifted_text_features(self, shifts: Tensor) -> Tensor:
        """Features (B, C, E) of the sentences whose contexts are shifted by (B, D_t)."""
        embeddings = torch.cat([self.context(shift) for shift in shifts])
        features = self.backbone.encode_embeddings(embeddings, self.context.layout.repeat(len(shifts)))
        return features.unflatten(0, (len(shifts), -1))

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, E) of images (B, 3, H, W), and for each of them those of the classes, (B, C, E)."""
        z = self.image_features(images)
        shifts = self.meta_net(F.normalize(z, dim=-1))
        at_once = max(1, MAX_SENTENCES // len(self.classnames))
        return z, torch.cat([self.shifted_text_features(chunk) for chunk in shifts.split(at_once)])

    def logits(self, z: Tensor, t: Tensor) -> Tensor:
        """Logits (B, C) of image features (B, E), each against text features of its own, (B, C, E)."""
        cosine = super().logits
        return torch.cat([cosine(z_i[None], t_i) for z_i, t_i in zip(z, t, strict=True)])


@TRAINER_REGISTRY.register()
class CoCoOp(MethodTrainer):
    """Trains CoCoOp."""

    CONFIG = {"COCOOP": CfgNode({"N_CTX": 16, "CTX_INIT": "", "PREC": "fp16"}), **DEPT}

    def build_method(self, backbone: Backbone, classnames: list[str]) -> Method:
        """CoCoOp as the keys say."""
        method = CoCoOpMethod(backbone, classnames, self.settings.N_CTX, self.settings.CTX_INIT)
        return with_dept(method, self.cfg.TRAINER.DEPT)

"""KgCoOp: CoOp whose class features are kept near those of the hand-written sentences.

Yao, Zhang, Xu, "Visual-Language Prompt Tuning with Knowledge-guided Context Optimization", CVPR 2023
(arXiv 2303.13283).

Shape legend: B images, C classes, E embedding width, n context tokens, D_t text width.
"""

import torch.nn.functional as F
from torch import Tensor
from yacs.config import CfgNode

from adaptation.dept import DEPT, with_dept
from adaptation.method import Method
from adaptation.templates import template_of
from adaptation.trainer import MethodTrainer
from clip.backbone import Backbone
from dassl.engine import TRAINER_REGISTRY
from trainers.coop import CoOpMethod
from trainers.zsclip import template_features

# the method's own sentence where it differs from the data set's
TEMPLATES = {"DescribableTextures": "a photo of a {}, a type of texture."}


class KgCoOpMethod(CoOpMethod):
    """A context shared by all classes, and the distance of the class features to the frozen ones as a second loss.

    Learned: `context.vectors` (n, D_t).

    Args:
        backbone: the frozen CLIP.
        classnames: the classes.
        template: the sentence whose features are the knowledge.
        n_ctx: context tokens, where `init` is empty. init: the words that the context starts from.
        weight: of the distance (lambda in the paper).
    """

    def __init__(
        self,
        backbone: Backbone,
        classnames: list[str],
        template: str,
        n_ctx: int = 4,
        init: str = "a photo of a",
        weight: float = 8.0,
    ):
        super().__init__(backbone, classnames, n_ctx, init)
        self.template = template
        self.weight = weight
        self.register_buffer("frozen", None, persistent=False)

    def begin_training(self) -> None:
        """Encode the hand-written sentences, (C, E)."""
        self.frozen = template_features(self.backbone, self.template, self.classnames)

    def extra_loss(self, images: Tensor, z: Tensor, t: Tensor, logits: Tensor) -> Tensor:
        """The weighted mean of one minus the cosine to the frozen features.

        The paper writes squared distances of normalised features (equation 2), which are twice that; the released code
        and its weight of 8 go with the cosine.
        """
        return self.weight * (1 - F.cosine_similarity(t, self.frozen, dim=-1).mean())


@TRAINER_REGISTRY.register()
class KgCoOp(MethodTrainer):
    """Trains KgCoOp."""

    # N_CTX counts only where CTX_INIT is empty
    CONFIG = {"KGCOOP": CfgNode({"N_CTX": 4, "CTX_INIT": "a photo of a", "W": 8.0, "PREC": "fp16"}), **DEPT}

    def build_method(self, backbone: Backbone, classnames: list[str]) -> Method:
        """KgCoOp as the keys say."""
        keys = self.settings
        template = TEMPLATES.get(self.cfg.DATASET.NAME) or template_of(self.dm.dataset)
        method = KgCoOpMethod(backbone, classnames, template, keys.N_CTX, keys.CTX_INIT, keys.W)
        return with_dept(method, self.cfg.TRAINER.DEPT)

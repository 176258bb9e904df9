"""VPT on CLIP: deep visual prompts; the text side is zero-shot CLIP's.

Jia et al., "Visual Prompt Tuning", ECCV 2022, as run on CLIP in the MaPLe repository.

Shape legend: B images, C classes, E embedding width, n prompt tokens, D_v image tower width.
"""

from torch import Tensor
from yacs.config import CfgNode

from adaptation.dept import DEPT, with_dept
from adaptation.method import IMAGE_PROMPT_NAMES, Method
from adaptation.prompts import image_prompts
from adaptation.templates import DEFAULT
from adaptation.trainer import MethodTrainer
from clip.backbone import Backbone
from dassl.engine import TRAINER_REGISTRY
from trainers.zsclip import ZeroshotMethod


class VPTMethod(ZeroshotMethod):
    """Fixed class features of `a photo of a {}.` for every data set; learned tokens in the image tower.

    Learned: `image_prompts` (n, D_v) for blocks 0 .. depth - 1; the depth is cut to the tower's number of blocks.

    Args:
        backbone: the frozen CLIP.
        classnames: the classes.
        n: prompt tokens per block. depth: prompted blocks. Both at least 1.

    Raises:
        ValueError: a number out of range (named), or an image tower without token slots.
    """

    checkpoint_names = IMAGE_PROMPT_NAMES

    def __init__(self, backbone: Backbone, classnames: list[str], n: int = 2, depth: int = 1):
        for key, value in (("N_CTX_VISION", n), ("PROMPT_DEPTH_VISION", depth)):
            if value < 1:
                raise ValueError(f"TRAINER.VPT.{key} is {value}, but must be at least 1: nothing else is learned")
        super().__init__(backbone, classnames, [DEFAULT])
        self.image_prompts = image_prompts(backbone, depth, n)

    def image_features(self, images: Tensor) -> Tensor:
        """Features (B, E) of images (B, 3, H, W) with deep prompts."""
        return self.backbone.encode_image(images, self.image_prompts())


@TRAINER_REGISTRY.register()
class VPT(MethodTrainer):
    """Trains deep visual prompts."""

    CONFIG = {
        "VPT": CfgNode(
            # CTX_INIT is an official key that no one reads: the sentence is the same for every data set
            {"N_CTX_VISION": 2, "CTX_INIT": "a photo of a", "PREC": "fp16", "PROMPT_DEPTH_VISION": 1}
        ),
        **DEPT,
    }

    def build_method(self, backbone: Backbone, classnames: list[str]) -> Method:
        """VPT as the keys say."""
        with self.precision.autocast():
            method = VPTMethod(backbone, classnames, self.settings.N_CTX_VISION, self.settings.PROMPT_DEPTH_VISION)
        return with_dept(method, self.cfg.TRAINER.DEPT)

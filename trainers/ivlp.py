"""IVLP: learned context, deep text prompts and deep visual prompts, each tower on its own; without visual prompts it is
language-only prompting.

"Independent V-L prompting" in Khattak et al., "MaPLe: Multi-modal Prompt Learning", CVPR 2023 (arXiv 2210.03117).

Shape legend: B images, C classes, E embedding width, n context or prompt tokens, D tower width.
"""

from torch import Tensor
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
from adaptation.trainer import MethodTrainer
from clip.backbone import Backbone
from dassl.engine import TRAINER_REGISTRY

MAX_WORDS = 4  # above this many tokens the context starts random


def ivlp_context(backbone: Backbone, classnames: list[str], n: int, init: str) -> ContextInit:
    """IVLP's start: the first n words of `init`, whose other words stay in the sentence; random without words or above
    `MAX_WORDS` tokens.

    Raises:
        ValueError: n is below 1, or above the number of words.
    """
    if not init or not 0 < n <= MAX_WORDS:
        return random_context(backbone, n, classnames)
    words = init.replace("_", " ")
    return context_from_words(backbone, words, n, [f"{words} {prompt_name(name)}." for name in classnames])


class IVLPMethod(Method):
    """Prompts in both towers, learned independently.

    Learned: `context.vectors` (n_t, D_t), `text_prompts` (n_t, D_t) for blocks 1 .. depth_text - 1, `image_prompts`
    (n_v, D_v) for blocks 0 .. depth_vision - 1. Either depth is cut to the tower's number of blocks.

    Args:
        backbone: the frozen CLIP.
        classnames: the classes.
        n_text: context tokens, and text prompt tokens per block. n_vision: visual prompt tokens per block.
        depth_text: prompted text blocks, at least 1. depth_vision: prompted image blocks; 0 is language-only prompting.
        init: the words before the class name that the context starts from, or empty.

    Raises:
        ValueError: a number out of range (named), or visual prompts for an image tower without token slots.
    """

    checkpoint_names = {**CONTEXT_NAMES, **TEXT_PROMPT_NAMES, **IMAGE_PROMPT_NAMES}

    def __init__(
        self,
        backbone: Backbone,
        classnames: list[str],
        n_text: int = 2,
        n_vision: int = 2,
        depth_text: int = 9,
        depth_vision: int = 9,
        init: str = "a photo of a",
    ):
        super().__init__(backbone, classnames)
        self.context = Context(backbone, ivlp_context(backbone, classnames, n_text, init))
        self.text_prompts = text_prompts(backbone, depth_text, n_text)
        self.image_prompts = image_prompts(backbone, depth_vision, n_vision)

    def text_features(self) -> Tensor:
        """Features (C, E) of the sentences with learned context and deep prompts."""
        return self.backbone.encode_embeddings(self.context(), self.context.layout, self.text_prompts())

    def image_features(self, images: Tensor) -> Tensor:
        """Features (B, E) of images (B, 3, H, W) with deep prompts."""
        return self.backbone.encode_image(images, self.image_prompts())


def prompt_sizes(keys: CfgNode) -> dict:
    """What the keys of a trainer with prompts in both towers say: numbers and depths of prompts, the first words."""
    return {
        "n_text": keys.N_CTX_TEXT,
        "n_vision": keys.N_CTX_VISION,
        "depth_text": keys.PROMPT_DEPTH_TEXT,
        "depth_vision": keys.PROMPT_DEPTH_VISION,
        "init": keys.CTX_INIT,
    }


@TRAINER_REGISTRY.register()
class IVLP(MethodTrainer):
    """Trains IVLP, or language-only prompting."""

    checkpoint_dir = "VLPromptLearner"
    CONFIG = {
        "IVLP": CfgNode(
            {
                "N_CTX_VISION": 2,
                "N_CTX_TEXT": 2,
                "CTX_INIT": "a photo of a",
                "PREC": "fp16",
                "PROMPT_DEPTH_VISION": 9,
                "PROMPT_DEPTH_TEXT": 9,
            }
        )
    }

    def build_method(self, backbone: Backbone, classnames: list[str]) -> Method:
        """IVLP as the keys say."""
        return IVLPMethod(backbone, classnames, **prompt_sizes(self.settings))

"""CoOp: a learned context in the class sentences.

Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022 (arXiv 2109.01134).

Shape legend: C classes, L tokens, n context tokens, D_t text width, E embedding width.
"""

from torch import Tensor
from yacs.config import CfgNode

from clip.backbone import Backbone
from clip.precision import full
from dassl.engine import TRAINER_REGISTRY
from trainers.base import MethodTrainer
from trainers.method import CONTEXT_NAMES, Method
from trainers.prompts import Context, ContextInit, context_from_words, random_context, spoken


def coop_context(
    backbone: Backbone, classnames: list[str], n_ctx: int, init: str, class_specific: bool = False
) -> ContextInit:
    """CoOp's start: from the words of `init` (all of them; `n_ctx` is then ignored) or random.

    Raises:
        ValueError: class-specific contexts were asked to start from words, which they cannot.
    """
    if not init:
        return random_context(backbone, n_ctx, classnames, class_specific)
    if class_specific:
        raise ValueError(f"class-specific contexts (CSC) start random: CTX_INIT must be empty, but is {init!r}")
    words = init.replace("_", " ")
    sentences = [f"{words} {spoken(name)}." for name in classnames]
    return context_from_words(backbone, words, len(words.split()), sentences)


class ContextMethod(Method):
    """A learned context, however it starts; arguments beyond the class names are those of `Context`.

    Learned: `context.vectors`, (n, D_t) or (C, n, D_t).
    """

    names = CONTEXT_NAMES

    def __init__(
        self,
        backbone: Backbone,
        classnames: list[str],
        start: ContextInit,
        name_lengths: list[int] | None = None,
        position: str = "end",
    ):
        super().__init__(backbone, classnames)
        self.context = Context(backbone, start, name_lengths, position)

    def text_features(self) -> Tensor:
        """Features (C, E) of the sentences with the learned context."""
        return full(self.backbone.encode_embeddings(self.context(), self.context.end))


class CoOpMethod(ContextMethod):
    """A context shared by all classes, or one per class (`class_specific`), at the end, in the middle or in front."""

    def __init__(
        self,
        backbone: Backbone,
        classnames: list[str],
        n_ctx: int = 16,
        init: str = "",
        class_specific: bool = False,
        position: str = "end",
    ):
        names = backbone.tokenize([spoken(name) for name in classnames])
        name_lengths = (backbone.end_of_text(names) - backbone.context_start).tolist()
        start = coop_context(backbone, classnames, n_ctx, init, class_specific)
        super().__init__(backbone, classnames, start, name_lengths, position)
        self.owns_classes = class_specific


@TRAINER_REGISTRY.register()
class CoOp(MethodTrainer):
    """Trains CoOp."""

    node = "COOP"
    CONFIG = {
        "COOP": CfgNode({"N_CTX": 16, "CSC": False, "CTX_INIT": "", "PREC": "fp16", "CLASS_TOKEN_POSITION": "end"})
    }

    def build_method(self, backbone: Backbone, classnames: list[str]) -> Method:
        """CoOp as the keys say."""
        keys = self.settings
        return CoOpMethod(backbone, classnames, keys.N_CTX, keys.CTX_INIT, keys.CSC, keys.CLASS_TOKEN_POSITION)

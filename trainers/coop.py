"""CoOp: a learned context in the class sentences.

Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022 (arXiv 2109.01134).

Shape legend: C classes, L tokens, n context tokens, D_t text width, E embedding width.
"""

from torch import Tensor
from yacs.config import CfgNode

from adaptation.dept import DEPT, with_dept
from adaptation.method import CONTEXT_NAMES, Method
from adaptation.prompts import Context, ContextInit, context_from_words, prompt_name, random_context
from adaptation.trainer import MethodTrainer
from clip.backbone import Backbone
from dassl.engine import TRAINER_REGISTRY, ClassTransfer


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
    sentences = [f"{words} {prompt_name(name)}." for name in classnames]
    return context_from_words(backbone, words, len(words.split()), sentences)


class ContextMethod(Method):
    """A learned context, however it starts; arguments beyond the class names are those of `Context`.

    Learned: `context.vectors`, (n, D_t) or (C, n, D_t).
    """

    checkpoint_names = CONTEXT_NAMES

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
        return self.backbone.encode_embeddings(self.context(), self.context.layout)


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
        names = backbone.tokenize([prompt_name(name) for name in classnames])
        name_lengths = (backbone.end_of_text(names) - backbone.context_start).tolist()
        start = coop_context(backbone, classnames, n_ctx, init, class_specific)
        super().__init__(backbone, classnames, start, name_lengths, position)


@TRAINER_REGISTRY.register()
class CoOp(MethodTrainer):
    """Trains CoOp."""

    CONFIG = {
        "COOP": CfgNode({"N_CTX": 16, "CSC": False, "CTX_INIT": "", "PREC": "fp16", "CLASS_TOKEN_POSITION": "end"}),
        **DEPT,
    }

    @classmethod
    def class_transfer(cls, cfg: CfgNode) -> ClassTransfer:
        """Contexts of single classes belong to these."""
        return "none" if cfg.TRAINER.COOP.CSC else "any"

    def build_method(self, backbone: Backbone, classnames: list[str]) -> Method:
        """CoOp as the keys say."""
        keys = self.settings
        method = CoOpMethod(backbone, classnames, keys.N_CTX, keys.CTX_INIT, keys.CSC, keys.CLASS_TOKEN_POSITION)
        return with_dept(method, self.cfg.TRAINER.DEPT)

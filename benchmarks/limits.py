"""The least that a training step needs, computed from widths, depths, tokens and what is learned.

What counts are products of matrices and attention. Each token goes through a block once: 24 D^2 operations, and 4 D for
each token that it attends to; the last block computes keys and values of all tokens, and the rest of those that are
read out. A backward pass costs as much as the forward pass for activations, and attention twice as much; it reaches
from the last block to the first one that something learned acts on. Weights of the towers are frozen, and what else a
method learns counts for nothing.

Shape legend: B images, C classes, D tower width, P tokens that all sentences begin with.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from clip.backbone import Backbone

TEMPLATE, CONTEXT = 5, 17  # tokens before the class name: of `a photo of a`, and of 16 learned ones


@dataclass(frozen=True)
class Tokens:
    """What one pass through a tower computes in a block.

    Attributes:
        tokens: how many.
        pairs: of tokens and those that they attend to.
        read: how many are read out.
        read_pairs: of these and those that they attend to.
    """

    tokens: int
    pairs: int
    read: int
    read_pairs: int

    def operations(self, width: int, blocks: int, backward: int | None, passes: int = 1, inside: bool = False) -> int:
        """Of a forward pass and so many backward passes, which reach down to block `backward`; None for no backward.

        With `inside` they end at that block's queries, keys and values.
        """
        linear = 24 * width**2 * self.tokens
        last = 4 * width**2 * self.tokens + 20 * width**2 * self.read
        attention, last_attention = 4 * width * self.pairs, 4 * width * self.read_pairs
        total = (blocks - 1) * (linear + attention) + last + last_attention
        if backward is not None:
            total += passes * ((blocks - 1 - backward) * (linear + 2 * attention) + last + 2 * last_attention)
            total -= passes * inside * 6 * width**2 * self.tokens
        return total


def of_images(
    backbone: Backbone, images: int, prompts: int = 0, backward: int | None = None, inside: bool = False
) -> int:
    """Operations of a pass of images with so many prompt tokens in each block through a ViT."""
    weight = backbone.model.get_parameter("visual.conv1.weight")
    patches = (backbone.image_size // weight.shape[-1]) ** 2
    each = patches + 1 + prompts
    tokens = Tokens(images * each, images * each**2, images, images * each)
    embedding = 2 * weight.numel() * patches * images
    width, blocks = weight.shape[0], backbone.vision_layers
    return embedding + tokens.operations(width, blocks, backward, inside=inside)


def of_sentences(
    backbone: Backbone,
    lengths: Sequence[int],
    shared: int,
    backward: int | None = None,
    passes: int = 1,
    inside: bool = False,
) -> int:
    """Operations of a pass of sentences whose first `shared` tokens are computed once."""
    tokens = shared + sum(length - shared for length in lengths)
    pairs = _causal(shared) + sum(_causal(length) - _causal(shared) for length in lengths)
    once = Tokens(tokens, pairs, len(lengths), sum(lengths))
    return once.operations(backbone.text_width, backbone.text_layers, backward, passes, inside)


def _causal(length: int) -> int:
    """Pairs of tokens and those up to them."""
    return length * (length + 1) // 2


@dataclass(frozen=True)
class Limit:
    """What a step of a method goes through.

    Attributes:
        words: tokens before the class name, P.
        image_prompts: tokens in each block of the image tower.
        images: whether something in the image tower is learned.
        frozen_images: further passes of images through the frozen tower.
        text: whether the sentences are encoded in a step, as something in them is learned.
        passes: backward passes through the text tower.
        alike: whether sentences that begin alike have the same hidden states.
        inside: whether nothing is learned before the first block's queries, keys and values.
    """

    words: int = TEMPLATE
    image_prompts: int = 0
    images: bool = False
    frozen_images: int = 0
    text: bool = True
    passes: int = 1
    alike: bool = True
    inside: bool = False

    def operations(self, backbone: Backbone, images: int, lengths: Sequence[int], share: bool) -> int:
        """Of a step.

        Args:
            backbone: whose sizes count.
            images: B.
            lengths: tokens of the C class names.
            share: whether what sentences begin with is computed once where that is the same.
        """
        total = of_images(backbone, images, self.image_prompts, 0 if self.images else None, self.inside)
        total += self.frozen_images * of_images(backbone, images)
        if self.text:
            whole = [self.words + length + 2 for length in lengths]  # a full stop and the end token follow
            shared = self.words if share and self.alike else 0
            total += of_sentences(backbone, whole, shared, 0, self.passes, self.inside)
        return total


LIMITS = {  # by trainer, with its default configuration
    "APEX": Limit(image_prompts=2, images=True),
    "CLIP_LoRA": Limit(images=True, alike=False, inside=True),  # each sentence drops its own places
    "CoCoOp": Limit(words=CONTEXT),
    "CoOp": Limit(words=CONTEXT),
    "IVLP": Limit(image_prompts=2, images=True),
    "KgCoOp": Limit(),
    "MaPLe": Limit(image_prompts=2, images=True),
    "ProGrad": Limit(words=CONTEXT, passes=2),
    "PromptSRC": Limit(image_prompts=4, images=True, frozen_images=1),
    "VPT": Limit(image_prompts=8, images=True, text=False),
    "CLIP_Adapter": Limit(text=False),
    "TaskRes": Limit(text=False),
}

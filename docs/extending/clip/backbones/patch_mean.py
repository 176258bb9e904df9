"""The carried CLIP read out at the mean of its patches instead of its class token. The example of docs/EXTENDING.md.

Shape legend: N images, T tokens, n prompt tokens, D tower width, E embedding width.
"""

from torch import Tensor

from clip.backbone import Backbone
from clip.clip import tokenize
from clip.loading import load_backbone
from clip.towers import ImageTower


def load(path: str) -> Backbone:
    """The backbone; `path` is the file of the carried CLIP, empty for the one that is here."""
    model = load_backbone("tiny-ViT", path).model
    visual = model.visual
    patches = visual.positional_embedding.shape[0] - 1

    def pool(x: Tensor) -> Tensor:
        """Tokens (N, T + n, D) -> features (N, E), from the patches; prompts stand after them."""
        return visual.ln_post(x[:, 1 : 1 + patches].mean(dim=1)) @ visual.proj

    image = ImageTower(
        width=visual.transformer.width,
        output_dim=visual.output_dim,
        image_size=visual.input_resolution,
        embed=visual.embed,
        norm=visual.ln_pre,
        blocks=tuple(visual.transformer.resblocks),
        pool=pool,
    )
    return Backbone("patch_mean", model, image, model.text_tower(), tokenize)

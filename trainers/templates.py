"""The sentences of zero-shot CLIP: a data set declares its own template; the prompt ensembles are here."""

DEFAULT = "a photo of a {}."

# the seven that CLIP's authors selected for ImageNet
IMAGENET_SELECT = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)


def template_of(dataset: object) -> str:
    """The template that a data set declares (`template`), or `a photo of a {}.`."""
    return getattr(dataset, "template", "") or DEFAULT


def ensemble_of(dataset: object, name: str) -> list[str]:
    """The prompt ensemble: the seven selected templates, and the set's own unless the set is ImageNet."""
    return [*IMAGENET_SELECT, *([] if name == "ImageNet" else [template_of(dataset)])]


def fill(template: str, classnames: list[str]) -> list[str]:
    """The template's sentence for each class; underscores in names become spaces."""
    return [template.format(name.replace("_", " ")) for name in classnames]

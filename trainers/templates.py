"""The sentences of zero-shot CLIP: one template per data set, and the prompt ensembles.

Sources: the table of CoOp's zero-shot trainer; the seven templates that the CLIP authors selected for ImageNet.
"""

DEFAULT = "a photo of a {}."

CUSTOM = {
    "OxfordPets": "a photo of a {}, a type of pet.",
    "OxfordFlowers": "a photo of a {}, a type of flower.",
    "FGVCAircraft": "a photo of a {}, a type of aircraft.",
    "DescribableTextures": "{} texture.",
    "EuroSAT": "a centered satellite photo of {}.",
    "Food101": "a photo of {}, a type of food.",
    "UCF101": "a photo of a person doing {}.",
}

IMAGENET_SELECT = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)


def template_of(dataset_name: str, own: str = "") -> str:
    """The template of a data set: its own declaration, else the table's, else `a photo of a {}.`."""
    return own or CUSTOM.get(dataset_name, DEFAULT)


def ensemble_of(dataset_name: str, own: str = "") -> list[str]:
    """The prompt ensemble: the seven selected templates, and the set's own unless the set is ImageNet."""
    extra = [] if dataset_name == "ImageNet" else [template_of(dataset_name, own)]
    return [*IMAGENET_SELECT, *extra]


def fill(template: str, classnames: list[str]) -> list[str]:
    """The template's sentence for each class; underscores in names become spaces."""
    return [template.format(name.replace("_", " ")) for name in classnames]

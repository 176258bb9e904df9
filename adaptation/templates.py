"""The sentences of zero-shot CLIP: a data set declares its own template; the prompt ensembles are here."""

from importlib.util import find_spec
from pathlib import Path
from runpy import run_path

from adaptation.prompts import prompt_name

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


def select_templates(dataset: object, name: str, with_own: bool = False) -> list[str]:
    """The set's own template; for ImageNet and its variants the seven selected ones, `with_own` followed by their own.

    Args:
        dataset: the data set.
        name: its registered name.
        with_own: whether the template of ImageNet counts beside the seven.
    """
    own = [template_of(dataset)]
    return [*IMAGENET_SELECT, *(own if with_own else ())] if name.startswith("ImageNet") else own


def fill(template: str, classnames: list[str]) -> list[str]:
    """The template's sentence for each class; underscores in names become spaces."""
    return [template.format(prompt_name(name)) for name in classnames]


def imagenet_templates() -> list[str]:
    """The 80 templates of CLIP's authors for ImageNet, from the installed open_clip (whose import takes seconds)."""
    spec = find_spec("open_clip")
    if spec is None or spec.origin is None:
        raise FileNotFoundError(
            "the ImageNet templates come with open_clip, which is not installed: see requirements.txt"
        )
    lists = run_path(str(Path(spec.origin).parent / "zero_shot_metadata.py"))
    return [template("{}") for template in lists["OPENAI_IMAGENET_TEMPLATES"]]

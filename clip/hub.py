"""Where an open_clip name leads: the architecture, the image constants, and the weights in a local file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import open_clip
from huggingface_hub import try_to_load_from_cache
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
from open_clip.pretrained import download_pretrained_from_hf, get_pretrained_cfg

from clip import clip
from clip.weight_files import reason, weights_file
from clip.weights import DownloadError

HUB, FOLDER = "hf-hub:", "local-dir:"
SETTINGS = "open_clip_config.json"
WEIGHTS = (HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME)
DEFAULT_WEIGHTS = {"coca_ViT-B-32": "laion2b_s13b_b90k"}  # of several; the paper's choice


@dataclass(frozen=True)
class Source:
    """What a name stands for.

    Attributes:
        name: the name in the configuration.
        folder: the folder that a `local-dir:` name gives, which then holds the tokenizer too.
        config: open_clip's description of the architecture.
        preprocess: open_clip's description of the images: mean, std, interpolation, resize_mode, fill_color.
        weights: the local file.
    """

    name: str
    config: dict
    preprocess: Mapping
    weights: Path
    folder: Path | None = None


def resolve(name: str, path: str = "") -> Source:
    """Find the architecture, the image constants and the weights file that a name and a path stand for.

    Raises:
        ValueError: unknown name (with the nearest known one), one that does not say which weights, or a model whose
            text tower takes no context.
        FileNotFoundError: `path`, or something in the folder of a `local-dir:` name, does not exist.
        DownloadError: a download failed; says what to put where.
    """
    if path and not Path(path).exists():
        raise FileNotFoundError(f"the path of the backbone is {path}, but there is no such file or folder")
    file = weights_file(path) if path else None
    cache = path if path and file is None else None
    if name.startswith(HUB):
        return _of_repository(name, file, cache)
    if name.startswith(FOLDER):
        return _of_folder(name, file)
    model, _, tag = name.partition(":")
    model = model.replace("/", "-")
    config = open_clip.get_model_config(model)
    if config is None:
        raise _unknown(name)
    _refuse_foreign_text(name, config)
    known = open_clip.list_pretrained_tags_by_model(model)
    tag = tag or ("" if file else _only_tag(model, known))
    pretrained = get_pretrained_cfg(model, tag) if tag else _common(model, known, bool(config.get("quick_gelu")))
    if tag and not pretrained:
        near = [other for other in known if other.startswith(tag)] or get_close_matches(tag, known, n=1)
        hint = f"did you mean {model}:{near[0]}?" if near else f"it has {', '.join(known) or 'none'}"
        raise ValueError(f"unknown weights {tag!r} of the backbone {model}: {hint}")
    if pretrained.get("quick_gelu"):  # these weights were trained with it, whatever the architecture's default
        config["quick_gelu"] = True
    return Source(name, config, pretrained, file or _hub_weights(name, pretrained["hf_hub"], cache))


def _only_tag(model: str, known: list[str]) -> str:
    """The weights that a bare model name means."""
    if model in DEFAULT_WEIGHTS:
        return DEFAULT_WEIGHTS[model]
    if len(known) == 1:
        return known[0]
    if not known:
        raise ValueError(f"open_clip has no weights of {model}: name a file as the path of the backbone")
    raise ValueError(
        f"open_clip has several weights of {model}: write one of {', '.join(f'{model}:{tag}' for tag in known)}"
    )


def _common(model: str, known: list[str], quick_gelu: bool) -> dict:
    """The image constants that all weights of a model share, for a file without a tag.

    Args:
        model: open_clip's name.
        known: its tags.
        quick_gelu: whether the model of that name computes QuickGELU.

    Raises:
        ValueError: the weights differ in their constants, or some were trained with another activation than the model
            of that name has, which a file does not say.
    """
    each = [get_pretrained_cfg(model, tag) for tag in known]
    names = ", ".join(f"{model}:{tag}" for tag in known)
    if any(bool(tag.get("quick_gelu")) != quick_gelu for tag in each):
        raise ValueError(
            f"{model} computes GELU, but weights of that name were trained with QuickGELU, and a file does not say "
            f"which: write {model}-quickgelu for QuickGELU, or the name that the file has at open_clip, one of "
            f"{names}; weights of your own go into a folder with their {SETTINGS}, named {FOLDER}<folder>"
        )
    shared = {key: {tag.get(key) for tag in each} for key in ("mean", "std", "interpolation", "resize_mode")}
    if any(len(values) > 1 for values in shared.values()):
        raise ValueError(
            f"the weights of {model} were trained with different image constants: say which the file has by writing "
            f"one of {names}"
        )
    return {key: value for key, values in shared.items() for value in values}


def _unknown(name: str) -> ValueError:
    tagged = open_clip.list_pretrained(as_str=True)
    near = get_close_matches(name, [*clip.available_models(), *open_clip.list_models(), *tagged], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return ValueError(
        f"unknown backbone {name!r}{hint} Known: {', '.join(clip.available_models())}, a weights file's path, one of "
        f"the {len(tagged)} model:weights names of open_clip (like ViT-B-16:laion2b_s34b_b88k), "
        "hf-hub:owner/repository, local-dir:folder"
    )


def _refuse_foreign_text(name: str, config: Mapping) -> None:
    """Refuse a model before its weights are fetched whose text tower takes no context."""
    text = config["text_cfg"].get("hf_model_name")
    if text:
        raise ValueError(f"{name}: its text tower {text} is a Hugging Face model, into which no context can be placed")


def _of_repository(name: str, file: Path | None, cache: str | None) -> Source:
    repository = name.removeprefix(HUB)
    settings = _read_settings(name, _hub_file(name, repository, SETTINGS, cache))
    weights = file or _hub_weights(name, f"{repository}/", cache)
    return Source(name, settings["model_cfg"], settings.get("preprocess_cfg", {}), weights)


def _of_folder(name: str, file: Path | None) -> Source:
    folder = Path(name.removeprefix(FOLDER)).expanduser()
    if not (folder / SETTINGS).is_file():
        raise FileNotFoundError(f"{name}: no {SETTINGS} in {folder}")
    settings = _read_settings(name, folder / SETTINGS)
    file = file or next((folder / there for there in WEIGHTS if (folder / there).is_file()), None)
    if file is None:
        raise FileNotFoundError(f"{name}: neither {' nor '.join(WEIGHTS)} in {folder}")
    return Source(name, settings["model_cfg"], settings.get("preprocess_cfg", {}), file, folder)


def _read_settings(name: str, path: Path) -> dict:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged or no JSON: {error}") from error
    model = settings.get("model_cfg") if isinstance(settings, dict) else None
    if not isinstance(model, dict) or not all(isinstance(model.get(f"{t}_cfg"), dict) for t in ("vision", "text")):
        raise ValueError(
            f"{path} has no entry model_cfg with vision_cfg and text_cfg: it is not a description of an open_clip model"
        )
    if not isinstance(settings.setdefault("preprocess_cfg", {}), dict):
        raise ValueError(f"{path}: preprocess_cfg is no object")
    timm_name = model["vision_cfg"].get("timm_model_name", "")
    if not isinstance(timm_name, str) or ":" in timm_name or "/" in timm_name:
        raise ValueError(f"{path}: timm_model_name is {timm_name!r}, which is no model of timm but a place")
    _refuse_foreign_text(name, model)
    return settings


def _hub_weights(name: str, address: str, cache: str | None) -> Path:
    """The weights at `owner/repository/file`, or the default file of `owner/repository/`."""
    repository, _, file = address.rpartition("/")
    return _hub_file(name, repository, file or HF_WEIGHTS_NAME, cache)


def _hub_file(name: str, repository: str, file: str, cache: str | None) -> Path:
    """A file of a repository: from the cache without asking the hub where it is there, else downloaded."""
    safe = HF_SAFE_WEIGHTS_NAME if file == HF_WEIGHTS_NAME else str(Path(file).with_suffix(".safetensors"))
    for candidate in (file,) if file == SETTINGS else (safe, file):
        cached = try_to_load_from_cache(repository, candidate, cache_dir=cache)
        if isinstance(cached, str):
            return Path(cached)
    try:
        return Path(download_pretrained_from_hf(repository, filename=file, cache_dir=cache))
    except OSError as error:
        there = f"https://huggingface.co/{repository}"
        if name.startswith(HUB):
            fetch = f"{SETTINGS} and {WEIGHTS[0]} of {there} into one folder and use the name {FOLDER}<folder>"
        else:
            fetch = f"{safe} of {there} and name that file as the path of the backbone"
        raise DownloadError(
            f"could not get {file} of {name} ({reason(error)}). On a machine with a connection fetch {fetch}; or "
            "bring that machine's Hugging Face cache here ($HF_HOME)"
        ) from error

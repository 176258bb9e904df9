"""Backbones by name: OpenAI's models, those of open_clip, and the files of `clip/backbones/`."""

from collections.abc import Mapping
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor

from clip import clip
from clip.backbone import Backbone, weights_digest
from clip.model import CLIP, described, from_state_dict
from clip.weight_files import weights_file


def openai_backbone(name: str, state_dict: Mapping[str, Tensor]) -> Backbone:
    """A backbone from the weights of an OpenAI-format CLIP."""
    return _of_openai(name, from_state_dict(state_dict))


def _of_openai(name: str, model: CLIP) -> Backbone:
    backbone = Backbone(name, model, model.visual.tower(), model.text_tower(), clip.tokenize)
    backbone.architecture = {"library": "OpenAI", **described(model)}
    return backbone


def load_backbone(name: str, path: str = "") -> Backbone:
    """The frozen backbone of a configuration. Its kind follows from the name alone.

    Args:
        name: one of `clip.available_models()`, the path of the weights of an OpenAI model (a file, or a folder as
            transformers saves it), or a name of open_clip:
            `model:weights` (`ViT-B-16:laion2b_s34b_b88k`), `model` alone where it has one set of weights or `path`
            gives them (`EVA02-B-16`, `coca_ViT-B-32`), `hf-hub:owner/repository`, `local-dir:folder`; or the name of a
            file in `clip/backbones/`.
        path: the weights file, or a folder that holds (or receives) the named model's file; empty for the default.

    Raises:
        ValueError: unknown name (with the nearest known one), or a file that holds another model than is named.
        FileNotFoundError: `path` does not exist.
        DownloadError: a download failed; says what to put where.
    """
    backbone = _load(name, path)
    backbone.digest = weights_digest(backbone.model)
    backbone.reload = partial(load_backbone, name, path)
    return backbone


def fetch_weights(name: str, path: str = "") -> None:
    """Make sure that the weights of a backbone are on this machine, downloading those that have a name alone.

    Nothing is read but what tells which file it is. Arguments and errors as of `load_backbone`.
    """
    if name in clip.available_models() or (Path(name).exists() and weights_file(name)):
        if not (path and weights_file(path)):
            clip.locate(name, path or None)
    elif not (name.isidentifier() and find_spec(f"clip.backbones.{name}")):
        from clip import hub  # which imports open_clip

        hub.resolve(name, path)


def is_published(name: str) -> bool:
    """Whether a name stands for one known model: not for a file, a folder, or a repository of the hub."""
    if name in clip.available_models() or (name.isidentifier() and find_spec(f"{__package__}.backbones.{name}")):
        return True
    if Path(name).exists() or name.startswith((".", "/", "~")):
        return False
    from clip import openclip

    return openclip.is_known(name)


def require_published(name: str, path: str, source: str, name_flag: str, path_flag: str) -> None:
    """Refuse the place of a backbone that was chosen by a file, who may be a stranger's, and not by the user.

    Args:
        name: of the backbone as the file gives it; "" where the user gives it.
        path: of its weights, likewise.
        source: the file, for the message.
        name_flag: how a user gives the name, for the message.
        path_flag: how a user gives the path.

    Raises:
        ValueError: the name is that of a place, or there is a path.
    """
    if name and not is_published(name):
        raise ValueError(
            f"{source} names the backbone {name!r}, which is no published model but a place; files of others do not "
            f"choose what is read: if this is yours, give {name_flag} {name}"
        )
    if path:
        raise ValueError(
            f"{source} names the weights {path!r} of its backbone; files of others do not choose what is read: give "
            f'{path_flag} and your file, or "" for the published one'
        )


def _load(name: str, path: str) -> Backbone:
    if name in clip.available_models() or (Path(name).exists() and weights_file(name)):
        if file := weights_file(path) if path else None:
            return _of_openai(name, clip.read_model(file, name=name))
        return _of_openai(name, clip.read_model(clip.locate(name, path or None)))
    if name.isidentifier() and find_spec(f"{__package__}.backbones.{name}"):
        return import_module(f"{__package__}.backbones.{name}").load(path)
    from clip import openclip  # importing open_clip takes seconds: only where one of its models is asked for

    return openclip.load(name, path)

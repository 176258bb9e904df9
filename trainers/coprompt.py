"""CoPrompt: MaPLe with adapters on the features, kept near the frozen CLIP on other views and other sentences.

Roy, Etemad, "Consistency-guided Prompt Learning for Vision-Language Models", ICLR 2024 (arXiv 2306.01195).

Shape legend: B images, C classes, S sentences of all classes, E embedding width, n context or prompt tokens.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from adaptation.method import Method
from adaptation.prompts import prompt_name
from adaptation.templates import fill, template_of
from adaptation.trainer import MethodTrainer
from clip.backbone import Backbone
from clip.precision import autocast_disabled
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import stream_seed
from trainers.clip_adapter import REDUCTION
from trainers.maple import MaPLeMethod

logger = logging.getLogger(__name__)


def read_sentences(path: str, dataset: str) -> dict[str, list[str]]:
    """The sentences of each class, by its name, from a JSON file: `{"class name": ["sentence", ...], ...}`.

    Args:
        path: the file, or a folder with a file `<DATASET.NAME>.json` for each data set.
        dataset: name of the data set.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else.
    """
    file = Path(path) / f"{dataset}.json" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"TRAINER.COPROMPT.SENTENCES: there is no file {file}")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"TRAINER.COPROMPT.SENTENCES: {file} is no JSON file ({error})") from error
    lists = found.values() if isinstance(found, dict) else [None]
    if not all(isinstance(one, list) and one and all(isinstance(text, str) for text in one) for one in lists):
        raise ValueError(f"TRAINER.COPROMPT.SENTENCES: {file} must give every class name a list of sentences")
    return {prompt_name(name): sentences for name, sentences in found.items()}


class FeatureAdapter(nn.Sequential):
    """A bottleneck MLP on features whose output is mixed into them, as CLIP-Adapter's."""

    def __init__(self, width: int, share: float):
        hidden = width // REDUCTION
        down, up = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width, bias=False)
        super().__init__(down, nn.ReLU(), up, nn.ReLU())
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        """Features (..., E) -> (..., E)."""
        with autocast_disabled(x):
            return self.share * super().forward(x) + (1 - self.share) * x


class CoPromptMethod(MaPLeMethod):
    """MaPLe whose adapted features are kept near those of the frozen CLIP.

    The frozen features are of another view of an image, and of one of the class's sentences, which changes from step to
    step (`choose_sentences`). Learned: as MaPLe; `image_adapter` and `text_adapter`, E -> E / 4 -> E without biases.

    Args:
        backbone: the frozen CLIP.
        classnames: the classes.
        sentences: gives those of each class, by its name; called when training begins.
        n: context tokens, and prompt tokens per block. depth: prompted blocks. init: the words of the context.
        weight: of the distances.
        image_share: of the adapter in image features. text_share: likewise.

    Raises:
        ValueError: a number out of range (named), or an image tower without token slots.
    """

    described: Tensor
    first: Tensor
    counts: Tensor
    chosen: Tensor

    def __init__(
        self,
        backbone: Backbone,
        classnames: list[str],
        sentences: Callable[[], Mapping[str, Sequence[str]]],
        n: int = 2,
        depth: int = 9,
        init: str = "a photo of a",
        weight: float = 8.0,
        image_share: float = 0.1,
        text_share: float = 0.2,
    ):
        super().__init__(backbone, classnames, n, depth, init)
        for key, value in (("M_IMAGE", image_share), ("M_TEXT", text_share)):
            if not 0 <= value <= 1:
                raise ValueError(f"TRAINER.COPROMPT.{key} is {value}, but must lie in [0, 1]")
        self.sentences, self.weight, self.digest = sentences, weight, ""
        self.image_adapter = FeatureAdapter(backbone.embed_dim, image_share)
        self.text_adapter = FeatureAdapter(backbone.embed_dim, text_share)
        for name in ("described", "first", "counts"):
            self.register_buffer(name, None, persistent=False)
        draws = torch.zeros(len(classnames), dtype=torch.long, device=backbone.device)
        self.register_buffer("chosen", draws, persistent=False)

    @torch.no_grad()
    def begin_training(self) -> None:
        """Encode all sentences, (S, E), class after class.

        Raises:
            ValueError: classes have no sentences.
        """
        names, given = [prompt_name(name) for name in self.classnames], self.sentences()
        if missing := [name for name in names if not given.get(name)]:
            raise ValueError(
                f"TRAINER.COPROMPT.SENTENCES has no sentences of {len(missing)} classes ({', '.join(missing[:5])}): "
                "they cannot be trained"
            )
        texts = [list(given[name]) for name in names]
        self.digest = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
        each = [self.backbone.encode_text(self.backbone.tokenize(own)) for own in texts]
        self.described = torch.cat(each)
        self.counts = torch.tensor([len(own) for own in texts], device=self.chosen.device)
        self.first = self.counts.cumsum(0) - self.counts

    def report(self) -> dict:
        """A hash of the sentences of a training."""
        return {"coprompt": {"sentences_digest": self.digest}} if self.digest else {}

    def choose_sentences(self, seed: int, *keys: str | int) -> None:
        """Choose each class's sentence from now on: a function of (seed, keys)."""
        generator = torch.Generator().manual_seed(stream_seed(seed, "sentences", *keys))
        self.chosen.copy_(torch.randint(2**31, self.chosen.shape, generator=generator), non_blocking=True)

    def text_features(self) -> Tensor:
        """MaPLe's features (C, E), adapted."""
        return self.text_adapter(super().text_features())

    def image_features(self, images: Tensor) -> Tensor:
        """MaPLe's features (B, E) of images (B, 3, H, W), or of the first view of (B, 2, 3, H, W), adapted."""
        return self.image_adapter(super().image_features(images[:, 0] if images.ndim == 5 else images))

    def extra_loss(self, images: Tensor, z: Tensor, t: Tensor, logits: Tensor) -> Tensor:
        """The weighted distances of both sides' features to the frozen ones, of the second view where there is one."""
        with torch.no_grad():
            z_frozen = self.backbone.encode_image(images[:, 1] if images.ndim == 5 else images)
        t_frozen = self.described[self.first + self.chosen % self.counts]
        pairs = (t, t_frozen), (z, z_frozen)
        return self.weight * sum(
            (1 - F.cosine_similarity(*pair, dim=-1).mean() for pair in pairs), start=z.new_zeros(())
        )


@TRAINER_REGISTRY.register()
class CoPrompt(MethodTrainer):
    """Trains CoPrompt. Without a file of sentences the data set's own stand in, which is not the published method."""

    model: CoPromptMethod
    checkpoint_dir = "MultiModalPromptLearner"
    most_views = 2
    CONFIG = {
        "COPROMPT": CfgNode(
            {
                "N_CTX": 2,
                "CTX_INIT": "a photo of a",
                "PREC": "fp16",
                "PROMPT_DEPTH": 9,
                "SENTENCES": "",  # JSON file, or folder of files <DATASET.NAME>.json
                "W": 8.0,
                "M_IMAGE": 0.1,  # share of the adapter in the features
                "M_TEXT": 0.2,
            }
        )
    }

    def build_method(self, backbone: Backbone, classnames: list[str]) -> Method:
        """CoPrompt as the keys say."""
        keys = self.settings
        sizes = (keys.N_CTX, keys.PROMPT_DEPTH, keys.CTX_INIT, keys.W, keys.M_IMAGE, keys.M_TEXT)
        return CoPromptMethod(backbone, classnames, partial(self.sentences, classnames), *sizes)

    def sentences(self, classnames: list[str]) -> Mapping[str, Sequence[str]]:
        """The sentences of each class, by its name: from the file, else the data set's own."""
        if self.settings.SENTENCES:
            return read_sentences(self.settings.SENTENCES, self.cfg.DATASET.NAME)
        logger.warning("TRAINER.COPROMPT.SENTENCES is empty: a class has the data set's own sentence alone")
        own = fill(template_of(self.dm.dataset), classnames)
        return {prompt_name(name): [one] for name, one in zip(classnames, own, strict=True)}

    def parse_batch_train(self, batch) -> tuple[Tensor, Tensor]:
        """Images (B, 2, 3, H, W), or (B, 3, H, W) where there is one view, and labels (B,) on the device."""
        views = batch["img"]
        images = torch.stack(views, dim=1) if isinstance(views, list) else views
        return super().parse_batch_train({**batch, "img": images})

    def forward_backward(self, batch) -> dict:
        """One step, with sentences of its own."""
        self.model.choose_sentences(self.cfg.SEED, self.epoch, self.batch_idx)
        return super().forward_backward(batch)

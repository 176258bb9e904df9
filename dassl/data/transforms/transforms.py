"""From a Pillow image to a tensor (3, H, W), by the names in ``INPUT.TRANSFORMS``.

This module imports torchvision, which takes seconds: the rest of the engine imports it where it is needed.

Each step draws what Dassl's step of that name draws, from the same global generator and in the same order; the
exceptions are the policies and ``randaugment``, which are torchvision's.
"""

import functools
import logging
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torchvision.transforms as T
from PIL.Image import Image
from torch import Tensor
from yacs.config import CfgNode

from dassl.config import with_defaults
from dassl.utils import check_availability

logger = logging.getLogger(__name__)

INTERPOLATION_MODES = {mode: T.InterpolationMode(mode) for mode in ("bilinear", "bicubic", "nearest")}

Step = tuple[str, Callable]  # what the log says, what is done
ToTensors = Callable[[list[Image]], Sequence[Tensor]]  # the images of a batch -> their tensors


class Cutout:
    """Set ``n`` squares at random places of an image tensor (C, H, W) to 0; borders may cut them.

    A square reaches ``length // 2`` pixels up and left of its place, and as many down and right, its place included.
    Places are drawn from NumPy's generator.
    """

    def __init__(self, n: int, length: int) -> None:
        self.n, self.length = n, length

    def __call__(self, image: Tensor) -> Tensor:
        """Return a copy of ``image`` (C, H, W) with the squares in it."""
        image, (height, width), reach = image.clone(), image.shape[-2:], self.length // 2
        for _ in range(self.n):
            y, x = np.random.randint(height), np.random.randint(width)  # noqa: NPY002
            image[:, max(y - reach, 0) : y + reach, max(x - reach, 0) : x + reach] = 0
        return image


class RandomTranslation:
    """With probability ``p``, enlarge a Pillow image by an eighth and cut ``size`` (height, width) out of it; else resize.

    All is drawn from Python's generator: whether, from where on the left, from where at the top.
    """

    def __init__(self, size: tuple[int, int], interpolation: T.InterpolationMode, p: float = 0.5) -> None:
        self.size, self.interpolation, self.p = size, interpolation, p

    def __call__(self, image: Image) -> Image:
        """Return an image of ``size``."""
        if random.uniform(0, 1) > self.p:
            return T.functional.resize(image, self.size, self.interpolation)
        height, width = larger = [round(side * 1.125) for side in self.size]
        left = round(random.uniform(0, width - self.size[1]))
        top = round(random.uniform(0, height - self.size[0]))
        return T.functional.crop(T.functional.resize(image, larger, self.interpolation), top, left, *self.size)

    def __repr__(self) -> str:
        return f"RandomTranslation(size={self.size}, interpolation={self.interpolation.value}, p={self.p})"


class ResizeWhole:
    """Resize a Pillow image to fit into ``size`` (height, width), whole and in its aspect ratio, and pad it to that."""

    def __init__(self, size: tuple[int, int], interpolation: T.InterpolationMode, fill: int) -> None:
        self.size, self.interpolation, self.fill = size, interpolation, fill

    def __call__(self, image: Image) -> Image:
        """Return the image in the middle of ``size``, all around it the grey ``fill``."""
        height, width = self.size
        ratio = max(image.height / height, image.width / width)
        within = round(image.height / ratio), round(image.width / ratio)
        image = T.functional.resize(image, within, self.interpolation)
        above, left = (height - image.height) // 2, (width - image.width) // 2
        margins = [left, above, width - image.width - left, height - image.height - above]
        return T.functional.pad(image, margins, fill=self.fill)

    def __repr__(self) -> str:
        return f"ResizeWhole(size={self.size}, interpolation={self.interpolation.value}, fill={self.fill})"


class GaussianNoise:
    """Add normal noise (from PyTorch's generator) to an image tensor (C, H, W), half of the time (Python's generator)."""

    def __init__(self, mean: float, std: float, p: float = 0.5) -> None:
        self.mean, self.std, self.p = mean, std, p

    def __call__(self, image: Tensor) -> Tensor:
        """Return ``image`` (C, H, W), noisy or not."""
        if random.uniform(0, 1) > self.p:
            return image
        return image + (torch.randn(image.size()) * self.std + self.mean)


def instance_normalization(image: Tensor) -> Tensor:
    """Give each channel of ``image`` (C, H, W) mean 0 and standard deviation 1."""
    mean = image.mean(dim=(1, 2), keepdim=True)
    return (image - mean) / (image.std(dim=(1, 2), keepdim=True) + 1e-8)


def _resize(cfg: CfgNode) -> Step:
    height, width = cfg.INPUT.SIZE
    mode = INTERPOLATION_MODES[cfg.INPUT.INTERPOLATION]
    return f"resize to {height}x{width}", T.Resize((height, width), interpolation=mode)


def _resize_short_side(cfg: CfgNode) -> list[Step]:
    height, width = cfg.INPUT.SIZE
    edge = max(height, width)
    resize = T.Resize(edge, interpolation=INTERPOLATION_MODES[cfg.INPUT.INTERPOLATION])
    crop = T.CenterCrop((height, width))
    return [(f"resize the smaller edge to {edge}", resize), (f"{height}x{width} center crop", crop)]


def _resize_long_side(cfg: CfgNode) -> list[Step]:
    size, fill = tuple(cfg.INPUT.SIZE), cfg.INPUT.FILL_COLOR
    resize = ResizeWhole(size, INTERPOLATION_MODES[cfg.INPUT.INTERPOLATION], fill)
    return [(f"resize the larger edge to {max(size)}, padded with {fill} to {size[0]}x{size[1]}", resize)]


def _random_translation(cfg: CfgNode) -> Step:
    mode = INTERPOLATION_MODES[cfg.INPUT.INTERPOLATION]
    return "random translation", RandomTranslation(tuple(cfg.INPUT.SIZE), mode)


def _random_crop(cfg: CfgNode) -> Step:
    padding = cfg.INPUT.CROP_PADDING
    return f"random crop (padding={padding})", T.RandomCrop(tuple(cfg.INPUT.SIZE), padding=padding)


def _random_resized_crop(cfg: CfgNode) -> Step:
    size, scale = tuple(cfg.INPUT.SIZE), tuple(cfg.INPUT.RRCROP_SCALE)
    mode = INTERPOLATION_MODES[cfg.INPUT.INTERPOLATION]
    line = f"random resized crop (size={size}, scale={scale})"
    return line, T.RandomResizedCrop(size, scale=scale, interpolation=mode)


def _auto_augment(policy: str) -> Callable[[CfgNode], Step]:
    return lambda cfg: (f"{policy} auto augmentation policy", T.AutoAugment(T.AutoAugmentPolicy(policy)))


def _randaugment(cfg: CfgNode) -> Step:
    n, m = cfg.INPUT.RANDAUGMENT_N, cfg.INPUT.RANDAUGMENT_M
    return f"randaugment (n={n}, m={m})", T.RandAugment(n, m)


def _randaugment_fixmatch(cfg: CfgNode) -> Step:
    from dassl.data.transforms.randaugment import RandAugmentFixMatch

    n = cfg.INPUT.RANDAUGMENT_N
    return f"randaugment_fixmatch (n={n})", RandAugmentFixMatch(n)


def _colorjitter(cfg: CfgNode) -> Step:
    b, c, s, h = (cfg.INPUT[f"COLORJITTER_{letter}"] for letter in "BCSH")
    line = f"color jitter (brightness={b}, contrast={c}, saturation={s}, hue={h})"
    return line, T.ColorJitter(brightness=b, contrast=c, saturation=s, hue=h)


def _gaussian_blur(cfg: CfgNode) -> Step:
    kernel, p = cfg.INPUT.GB_K, cfg.INPUT.GB_P
    return f"gaussian blur (kernel={kernel})", T.RandomApply([T.GaussianBlur(kernel)], p=p)


def _cutout(cfg: CfgNode) -> Step:
    n, length = cfg.INPUT.CUTOUT_N, cfg.INPUT.CUTOUT_LEN
    return f"cutout (n_holes={n}, length={length})", Cutout(n, length)


def _normalize(cfg: CfgNode) -> Step:
    mean, std = list(cfg.INPUT.PIXEL_MEAN), list(cfg.INPUT.PIXEL_STD)
    return f"normalization (mean={mean}, std={std})", T.Normalize(mean=mean, std=std)


def _gaussian_noise(cfg: CfgNode) -> Step:
    mean, std = cfg.INPUT.GN_MEAN, cfg.INPUT.GN_STD
    return f"gaussian noise (mean={mean}, std={std})", GaussianNoise(mean, std)


# In the order in which training applies them; those of the second table work on the tensor.
IMAGE_STEPS: dict[str, Callable[[CfgNode], Step]] = {
    "random_translation": _random_translation,
    "random_crop": _random_crop,
    "random_resized_crop": _random_resized_crop,
    "random_flip": lambda cfg: ("random flip", T.RandomHorizontalFlip()),
    "imagenet_policy": _auto_augment("imagenet"),
    "cifar10_policy": _auto_augment("cifar10"),
    "svhn_policy": _auto_augment("svhn"),
    "randaugment": _randaugment,
    "randaugment_fixmatch": _randaugment_fixmatch,
    "colorjitter": _colorjitter,
    "randomgrayscale": lambda cfg: ("random gray scale", T.RandomGrayscale(p=cfg.INPUT.RGS_P)),
    "gaussian_blur": _gaussian_blur,
}
TENSOR_STEPS: dict[str, Callable[[CfgNode], Step]] = {
    "cutout": _cutout,
    "normalize": _normalize,
    "gaussian_noise": _gaussian_noise,
    "instance_norm": lambda cfg: ("instance normalization", instance_normalization),
}
RESIZE_MODES: dict[str, Callable[[CfgNode], list[Step]]] = {  # of test images
    "shortest": _resize_short_side,
    "longest": _resize_long_side,
    "squash": lambda cfg: [_resize(cfg)],
}
NO_STEPS = ("center_crop",)  # names that Dassl takes, and which do nothing there: test images are always cropped so
TRANSFORMS = (*IMAGE_STEPS, *TENSOR_STEPS, *NO_STEPS)
TEST_TRANSFORMS = ("normalize", "instance_norm")


def build_transform(cfg: CfgNode, is_train: bool = True, choices: Sequence[str] | None = None) -> Callable | None:
    """Return the transform for training or for test; each step is a line of the log.

    Training resizes to ``INPUT.SIZE`` (whatever the aspect ratio), unless a crop is chosen, then applies the chosen steps in
    the order of the tables above.  Test resizes as ``INPUT.RESIZE_MODE`` says (by default the smaller edge, and takes the
    centre), and normalises if that is chosen.

    Args:
        cfg: the configuration; node ``INPUT`` is read.
        is_train: for training.
        choices: names from ``TRANSFORMS``, default ``INPUT.TRANSFORMS``.

    Returns:
        Pillow image -> tensor (3, H, W) in [0, 1] before normalisation; None if ``INPUT.NO_TRANSFORM``.

    Raises:
        ValueError: an unknown transform, interpolation or way to resize.
    """
    cfg = with_defaults(cfg)
    if cfg.INPUT.NO_TRANSFORM:
        logger.info("Note: no transform is applied!")
        return None
    choices = cfg.INPUT.TRANSFORMS if choices is None else choices
    for choice in choices:
        check_availability(choice, TRANSFORMS, "transform")
    check_availability(cfg.INPUT.INTERPOLATION, list(INTERPOLATION_MODES), "value of INPUT.INTERPOLATION")
    check_availability(cfg.INPUT.RESIZE_MODE, list(RESIZE_MODES), "value of INPUT.RESIZE_MODE")
    logger.info("Building transform_%s", "train" if is_train else "test")
    return _compose(_train_steps(cfg, choices) if is_train else _test_steps(cfg, choices))


def build_plain_transform(cfg: CfgNode) -> Callable:
    """Return the transform of ``img0``: resize to ``INPUT.SIZE``, tensor, normalisation if chosen; nothing random."""
    cfg = with_defaults(cfg)
    steps = [_resize(cfg), ("", T.ToTensor())]
    if "normalize" in cfg.INPUT.TRANSFORMS:
        steps.append(_normalize(cfg))
    return T.Compose([transform for _, transform in steps])


def _to_tensor() -> Step:
    return "to torch tensor of range [0, 1]", T.ToTensor()


def _train_steps(cfg: CfgNode, choices: Sequence[str]) -> list[Step]:
    crops = {"random_crop", "random_resized_crop"} & set(choices)
    steps = [] if crops else [_resize(cfg)]
    steps += [make(cfg) for name, make in IMAGE_STEPS.items() if name in choices]
    steps.append(_to_tensor())
    return steps + [make(cfg) for name, make in TENSOR_STEPS.items() if name in choices]


def _test_steps(cfg: CfgNode, choices: Sequence[str]) -> list[Step]:
    steps = [*RESIZE_MODES[cfg.INPUT.RESIZE_MODE](cfg), _to_tensor()]
    return steps + [TENSOR_STEPS[name](cfg) for name in TEST_TRANSFORMS if name in choices]


def _compose(steps: list[Step]) -> Callable:
    for line, _ in steps:
        logger.info("+ %s", line)
    return T.Compose([transform for _, transform in steps])


DRAWING_FROM_TORCH_ONLY = {
    T.AutoAugment, T.CenterCrop, T.ColorJitter, T.GaussianBlur, T.Normalize, T.RandAugment,
    ResizeWhole, T.RandomCrop, T.RandomGrayscale, T.RandomHorizontalFlip, T.RandomResizedCrop, T.Resize, T.ToTensor,
}  # fmt: skip


def draws_from_torch_only(transform: Any) -> bool:
    """Say whether a transform, or each of a list of them, is known to draw random numbers from PyTorch only."""
    if isinstance(transform, list | tuple):
        return all(map(draws_from_torch_only, transform))
    if type(transform) in (T.Compose, T.RandomApply):
        return all(map(draws_from_torch_only, transform.transforms))
    return transform is None or transform is instance_normalization or type(transform) in DRAWING_FROM_TORCH_ONLY


def split_tensor_steps(transform: Any) -> tuple[Any, ToTensors | None]:
    """Split off the end of a transform that does the same to every image: to tensor, and normalisation if it follows.

    Returns:
        The transform without them, and a function from the Pillow images of a batch, as that leaves them, to their
        tensors (3, H, W), bit for bit those of the whole transform; or the transform as it is, and None.
    """
    steps = list(transform.transforms) if type(transform) is T.Compose else []
    normalize = steps.pop() if steps and type(steps[-1]) is T.Normalize else None
    if not steps or type(steps.pop()) is not T.ToTensor:
        return transform, None
    return T.Compose(steps), functools.partial(_to_tensors, normalize)


def _to_tensors(normalize: T.Normalize | None, images: list[Image]) -> Sequence[Tensor]:
    """Return the images as tensors (3, H, W), normalised if that is given; together if they are RGB and of one size."""
    first = images[0]
    if not all(isinstance(one, Image) and one.mode == "RGB" and one.size == first.size for one in images):
        one_by_one = T.Compose([T.ToTensor(), *([normalize] if normalize else [])])
        return [one_by_one(image) for image in images]
    batch = torch.from_numpy(np.stack([np.asarray(image) for image in images]))  # (B, H, W, 3)
    batch = batch.permute(0, 3, 1, 2).contiguous().to(torch.get_default_dtype()).div_(255)
    if normalize:
        T.functional.normalize(batch, normalize.mean, normalize.std, inplace=True)
    return batch.unbind()

"""Image transforms, chosen by name."""

from dassl.data.transforms.transforms import TRANSFORMS, build_plain_transform, build_transform

__all__ = ["TRANSFORMS", "build_plain_transform", "build_transform"]

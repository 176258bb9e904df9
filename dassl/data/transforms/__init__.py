"""Image transforms, chosen by name."""

from dassl.data.transforms.transforms import (
    TRANSFORMS,
    build_plain_transform,
    build_transform,
    draws_from_torch_only,
    split_tensor_steps,
)

__all__ = ["TRANSFORMS", "build_plain_transform", "build_transform", "draws_from_torch_only", "split_tensor_steps"]

"""Image transforms, chosen by name."""

from dassl.data.transforms.transforms import (
    INTERPOLATION_MODES,
    TRANSFORMS,
    build_plain_transform,
    build_transform,
    draws_from_torch_only,
    split_tensor_steps,
)

__all__ = ["INTERPOLATION_MODES", "TRANSFORMS", "build_plain_transform", "build_transform", "draws_from_torch_only", "split_tensor_steps"]

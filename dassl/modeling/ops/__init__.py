"""For third-party code: operations that mix images or features of a batch."""

from dassl.modeling.ops.efdmix import (
    EFDMix,
    activate_efdmix,
    crossdomain_efdmix,
    deactivate_efdmix,
    random_efdmix,
    run_with_efdmix,
    run_without_efdmix,
)
from dassl.modeling.ops.mixstyle import (
    MixStyle,
    activate_mixstyle,
    crossdomain_mixstyle,
    deactivate_mixstyle,
    random_mixstyle,
    run_with_mixstyle,
    run_without_mixstyle,
)
from dassl.modeling.ops.mixup import mixup
from dassl.modeling.ops.utils import create_onehot

__all__ = [
    "EFDMix",
    "MixStyle",
    "activate_efdmix",
    "activate_mixstyle",
    "create_onehot",
    "crossdomain_efdmix",
    "crossdomain_mixstyle",
    "deactivate_efdmix",
    "deactivate_mixstyle",
    "mixup",
    "random_efdmix",
    "random_mixstyle",
    "run_with_efdmix",
    "run_with_mixstyle",
    "run_without_efdmix",
    "run_without_mixstyle",
]

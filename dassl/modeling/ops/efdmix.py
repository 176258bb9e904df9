"""For third-party code: EFDMix (Zhang et al., Exact Feature Distribution Matching, CVPR 2022).

Shape legend: B images, C channels, H and W height and width of a feature map.
"""

from torch import Tensor

from dassl.modeling.ops.feature_mixing import FeatureMixing, Switch


class EFDMix(FeatureMixing):
    """Mixes the sorted values of each channel with the partner's; an image's own values keep their whole gradient."""

    def mixed(self, x: Tensor, weight: Tensor, partners: Tensor) -> Tensor:
        """Return ``x`` (B, C, H, W), each value moved towards the value of the same rank in the partner's channel."""
        flat = x.flatten(2)  # (B, C, H * W)
        ordered, places = flat.sort()
        matched = ordered[partners].gather(-1, places.argsort(-1))
        return (flat + (matched - flat.detach()) * (1 - weight.squeeze(-1))).view_as(x)


_SWITCH = Switch(EFDMix)
activate_efdmix, deactivate_efdmix = _SWITCH.activate, _SWITCH.deactivate
random_efdmix, crossdomain_efdmix = _SWITCH.random, _SWITCH.crossdomain
run_with_efdmix, run_without_efdmix = _SWITCH.run_with, _SWITCH.run_without

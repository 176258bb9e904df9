"""For third-party code: MixStyle (Zhou et al., Domain Generalization with MixStyle, ICLR 2021).

Shape legend: B images, C channels, H and W height and width of a feature map.
"""

from torch import Tensor

from dassl.modeling.ops.feature_mixing import FeatureMixing, Switch


class MixStyle(FeatureMixing):
    """Mixes mean and standard deviation of each channel, through which no gradient flows."""

    def mixed(self, x: Tensor, weight: Tensor, partners: Tensor) -> Tensor:
        """Return ``x`` (B, C, H, W), normalised per channel, under mixed means and standard deviations."""
        mean = x.mean(dim=(2, 3), keepdim=True).detach()
        std = (x.var(dim=(2, 3), keepdim=True) + self.eps).sqrt().detach()
        mixed_mean = mean * weight + mean[partners] * (1 - weight)
        mixed_std = std * weight + std[partners] * (1 - weight)
        return (x - mean) / std * mixed_std + mixed_mean


_SWITCH = Switch(MixStyle)
activate_mixstyle, deactivate_mixstyle = _SWITCH.activate, _SWITCH.deactivate
random_mixstyle, crossdomain_mixstyle = _SWITCH.random, _SWITCH.crossdomain
run_with_mixstyle, run_without_mixstyle = _SWITCH.run_with, _SWITCH.run_without

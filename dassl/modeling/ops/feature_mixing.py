"""For third-party code: what MixStyle and EFDMix share.

Shape legend: B images, C channels, H and W height and width of a feature map.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dassl.utils import check_availability

PARTNERS = ("random", "crossdomain")


class FeatureMixing(nn.Module):
    """Mix the statistics of each feature map with those of another image of the batch, in training and while active.

    What is drawn, in this order: whether to mix (Python's generator); a weight per image from Beta(alpha, alpha); the
    partners (PyTorch's generator both).

    Args:
        p: how often a batch is mixed.
        alpha: of the Beta distribution.
        eps: is added to variances.
        mix: partner of an image: any of the batch (``"random"``), or one of the other half, which holds the other
            domain (``"crossdomain"``).
    """

    def __init__(self, p: float = 0.5, alpha: float = 0.1, eps: float = 1e-6, mix: str = "random") -> None:
        super().__init__()
        self.p, self.alpha, self.eps = p, alpha, eps
        self.beta = torch.distributions.Beta(alpha, alpha)
        self._activated = True
        self.update_mix_method(mix)

    def set_activation_status(self, status: bool = True) -> None:
        """Mix from now on, or not."""
        self._activated = status

    def update_mix_method(self, mix: str = "random") -> None:
        """Choose partners in another way; ValueError for an unknown one."""
        check_availability(mix, PARTNERS, "way to mix features")
        self.mix = mix

    def extra_repr(self) -> str:
        """Return the settings."""
        return f"p={self.p}, alpha={self.alpha}, eps={self.eps}, mix={self.mix}"

    def forward(self, x: Tensor) -> Tensor:
        """Return feature maps (B, C, H, W), mixed or as they are."""
        if not self.training or not self._activated or random.random() > self.p:
            return x
        weight = self.beta.sample((len(x), 1, 1, 1)).to(x.device)
        return self.mixed(x, weight, self._partners(len(x)))

    def mixed(self, x: Tensor, weight: Tensor, partners: Tensor) -> Tensor:
        """Return ``x`` (B, C, H, W) with statistics of which ``weight`` (B, 1, 1, 1) is each image's own share."""
        raise NotImplementedError

    def _partners(self, count: int) -> Tensor:
        """Return the index of each image's partner, (B,)."""
        if self.mix == "random":
            return torch.randperm(count)
        second, first = torch.arange(count - 1, -1, -1).chunk(2)
        return torch.cat([half[torch.randperm(len(half))] for half in (second, first)])


class Switch:
    """What is done to all mixing layers of one kind in a model: ``model.apply(switch.activate)`` and so on."""

    def __init__(self, kind: type[FeatureMixing]) -> None:
        self.kind = kind

    def activate(self, module: nn.Module) -> None:
        """Let the module mix, if it is of the kind."""
        self._set(module, True)

    def deactivate(self, module: nn.Module) -> None:
        """Let the module pass everything on, if it is of the kind."""
        self._set(module, False)

    def random(self, module: nn.Module) -> None:
        """Let any image be a partner, if the module is of the kind."""
        if isinstance(module, self.kind):
            module.update_mix_method("random")

    def crossdomain(self, module: nn.Module) -> None:
        """Let partners be of the other half of the batch, if the module is of the kind."""
        if isinstance(module, self.kind):
            module.update_mix_method("crossdomain")

    @contextmanager
    def run_with(self, model: nn.Module, mix: str | None = None) -> Iterator[None]:
        """Mix during the block, and not after it; partners are chosen as before, or as ``mix`` says."""
        if mix is not None:
            check_availability(mix, PARTNERS, "way to mix features")
            model.apply(getattr(self, mix))
        model.apply(self.activate)
        try:
            yield
        finally:
            model.apply(self.deactivate)

    @contextmanager
    def run_without(self, model: nn.Module) -> Iterator[None]:
        """Do not mix during the block, but after it."""
        model.apply(self.deactivate)
        try:
            yield
        finally:
            model.apply(self.activate)

    def _set(self, module: nn.Module, status: bool) -> None:
        if isinstance(module, self.kind):
            module.set_activation_status(status)

"""Domain generalisation: trained on ImageNet, tested on its variants, planned and tabulated as `xd`."""

from protocols.xd import protocol
from results.layout import IMAGENET_VARIANTS
from sweep.protocol import register

register(protocol("dg", IMAGENET_VARIANTS))

"""For third-party code: networks by name, and the classifier that Dassl's trainers build."""

from dassl.modeling.network.build import NETWORK_REGISTRY, build_network
from dassl.modeling.network.simple import SimpleNet

__all__ = ["NETWORK_REGISTRY", "SimpleNet", "build_network"]

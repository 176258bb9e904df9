"""Computing with other values of some of a model's weights; the model itself stays what it is."""

from collections.abc import Callable, Mapping

from torch import Tensor, nn
from torch.func import functional_call

TOWERS = ("text", "vision")
IN_NO_TOWER = ("logit_scale", "logit_bias", "text_decoder")  # the last is CoCa's captioner

Weights = Mapping[str, Tensor]  # by the names of a model's parameters


def tower_of(name: str) -> str | None:
    """The tower, one of `TOWERS`, that a parameter of a CLIP-like model belongs to by its name; None for neither."""
    part = name.partition(".")[0]
    if part in IN_NO_TOWER:
        return None
    return "vision" if part == "visual" else "text"


class _Computation(nn.Module):
    """Any computation with a model as a module's forward, which is what `functional_call` takes."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, compute: Callable[..., Tensor], *arguments: object, **options: object) -> Tensor:
        return compute(*arguments, **options)


class WithWeights:
    """A computation with the modules of a model, while weights of one tower have other values.

    Each value is converted to the format of the parameter whose place it takes, and gets its gradient through that: in
    half precision float32 values learn. The parameters are back in their places afterwards, whatever happens.

    Args:
        model: whose modules `compute` uses.
        tower: whose weights are meant, one of `TOWERS`.
        weights: gives the values, at each call.
        compute: what is called.
    """

    def __init__(self, model: nn.Module, tower: str, weights: Callable[[], Weights], compute: Callable[..., Tensor]):
        self._model, self._tower, self._weights, self._compute = model, tower, weights, compute

    def __call__(self, *arguments: object, **options: object) -> Tensor:
        """What the computation gives with the other values."""
        own = {
            f"model.{name}": value.to(self._model.get_parameter(name).dtype)
            for name, value in self._weights().items()
            if tower_of(name) == self._tower
        }
        if not own:
            return self._compute(*arguments, **options)
        return functional_call(_Computation(self._model), own, (self._compute, *arguments), options)

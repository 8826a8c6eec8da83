"""Normalisation layers: which matrices each of them feeds, and how its gain acts.

A rewrite that moves a gain into the matrices behind it has to know all of these matrices, whether the layer multiplies by
its weight or by one plus its weight, and whether it subtracts the mean. All three are asked of the layer.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from trimtab.core.places import Site


@dataclass(frozen=True)
class Norm:
    """A normalisation layer whose output is the input of `feeds`.

    path: of the module; its gain is the parameter `path + ".weight"`. offset: what the layer adds to its weight before it
    multiplies (1 for the Gemma families, else 0). centred: True if it subtracts the mean first (layer norm).
    """

    path: str
    feeds: tuple[Site, ...]
    offset: float = 0.0
    centred: bool = False


def is_norm(module: nn.Module) -> bool:
    """Does the module own a vector called `weight`? All norms do, and hardly anything else."""
    weight = module._parameters.get("weight")
    return weight is not None and weight.ndim == 1


@torch.no_grad()
def describe(path: str, module: nn.Module, feeds: tuple[Site, ...]) -> Norm:
    """The norm at `path`, with its offset and centring found by trying it."""
    weight = module.get_parameter("weight")
    x = torch.randn(4, len(weight), generator=torch.Generator().manual_seed(0)).to(weight)

    def output(gain: float, x: Tensor) -> Tensor:
        tried = {name: torch.zeros_like(p) for name, p in module.named_parameters()}
        result: Tensor = functional_call(module, {**tried, "weight": torch.full_like(weight, gain)}, (x,))
        return result.float()

    none, one = output(0.0, x), output(1.0, x)
    offset = none.norm() / (one - none).norm()
    # A shift by one is lost on a layer that subtracts the mean, up to the rounding of half precision.
    centred = (output(1.0, x + 1) - one).norm() < 0.05 * one.norm()
    return Norm(path, feeds, float(offset.round()), bool(centred))

"""Puts structures in the place of the matrices of a model that is to be trained, and afterwards what they have come to."""

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from trimtab.anatomy import Anatomy
from trimtab.core.errors import UsageError
from trimtab.core.places import Role, Site
from trimtab.core.scratch import ScratchMethod, Structure
from trimtab.core.seeds import Seeds
from trimtab.engine.surgery import place


class Standing(nn.Module):
    """A linear layer whose matrix is a structure."""

    def __init__(self, structure: Structure, bias: nn.Parameter | None):
        super().__init__()
        self.structure, self.bias = structure, bias

    def forward(self, x: Tensor) -> Tensor:
        product = cast(Tensor, self.structure(x))
        return product if self.bias is None else product + self.bias


def put(anatomy: Anatomy, method: ScratchMethod, seeds: Seeds) -> dict[str, Structure]:
    """A fresh structure in the place of every matrix that the method is for; by path of the layer, in forward order.

    Raises `UsageError`, changing nothing, where the method does not fit a matrix, or finds none.
    """
    sites = chosen(anatomy, method)
    for site in sites:
        method.fits(site)
    made = {site: method.begin(anatomy.weight(site).dense(), seeds.at("begin", site.name), site) for site in sites}
    method.join(made)
    for site, structure in made.items():
        layer = cast(nn.Linear, anatomy.module(site))
        anatomy.model.set_submodule(site.path, Standing(structure, layer.bias))
    return {site.path: structure for site, structure in made.items()}


def settle(model: nn.Module, structures: Mapping[str, Structure]) -> None:
    """Puts the results in the place of the structures: plain layers, or packed ones in their format."""
    for path, structure in structures.items():
        weight, bias = structure.result(), cast(nn.Parameter | None, model.get_submodule(path).bias)
        like = next(structure.parameters())
        out, inputs = weight.shape
        empty = skip_init(nn.Linear, inputs, out, bias=bias is not None, device=like.device, dtype=torch.float32)
        model.set_submodule(path, empty)
        place(model, path, weight, bias)


def chosen(anatomy: Anatomy, method: ScratchMethod) -> tuple[Site, ...]:
    """Matrices of the blocks but routers and experts, as far as the method wants them. Raises `UsageError` for none."""
    inside = (site for site in anatomy.sites if site.block is not None and site.role is not Role.ROUTER)
    found = tuple(site for site in inside if type(anatomy.module(site)) is nn.Linear and method.wants(site))
    if not found:
        raise UsageError(f"{method.card.id} finds no matrix of the kind that it is for in {type(anatomy.model).__name__}")
    return found


def numbers(anatomy: Anatomy, method: ScratchMethod) -> int:
    """Trained numbers of a whole model, once the method's results are in it; of the model as it is before."""
    sites = chosen(anatomy, method)
    every = sum(parameter.numel() for parameter in anatomy.model.parameters())
    return every - sum(site.shape[0] * site.shape[1] - method.numbers(site.shape) for site in sites)

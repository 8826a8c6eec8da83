"""Blocks that use the matrices of another block: stored once, in memory once, each with norms and a cache position of its own.

In the place of every matrix of such a block stands a module without tensors that passes its input to the other block's. So a
checkpoint has nothing to say twice, no tensor has two names, and whatever later takes the other's place serves both.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from trimtab.core.errors import ModelError
from trimtab.engine.packed_linear import PackedLinear

LOOKED_AT = ("weight", "bias", "in_features", "out_features", "nf", "nx")


class SharedLinear(nn.Module):
    """What stands at `name` in the module `owner`, used in another place. It is looked up at every call."""

    def __init__(self, owner: nn.Module, name: str):
        super().__init__()
        # Not as a submodule: its tensors would have a second name.
        self.__dict__["owner"] = owner
        self.name = name

    @property
    def source(self) -> nn.Module:
        return cast(nn.Module, getattr(self.__dict__["owner"], self.name))

    def __getattr__(self, name: str) -> Any:
        """Some families look at the weight or the sizes of their projections."""
        return getattr(self.source, name) if name in LOOKED_AT else super().__getattr__(name)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.source(x))


def share(model: nn.Module, path: str, source: str) -> None:
    """Lets the place `path` use the matrix at `source`. Raises `ModelError` where they are not alike, or it is shared itself."""
    here, there = model.get_submodule(path), model.get_submodule(source)
    if here is there or isinstance(there, SharedLinear) or not _is_matrix(there):
        raise ModelError(f"{path} cannot use what stands at {source}: a matrix of another place is needed")
    if not _is_matrix(here) or _sizes(here) != _sizes(there):
        raise ModelError(f"{path} cannot use the matrix at {source}: their sizes differ")
    owner, _, name = source.rpartition(".")
    parent, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(parent), leaf, SharedLinear(model.get_submodule(owner), name).train(here.training))


def sources(model: nn.Module) -> dict[str, str]:
    """Path of every shared place -> path of the matrix that it uses."""
    paths = {id(module): path for path, module in model.named_modules()}
    return {path: paths[id(module.source)] for path, module in model.named_modules() if isinstance(module, SharedLinear)}


def borrowed(block: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters that a block uses and another one owns."""
    for module in block.modules():
        if isinstance(module, SharedLinear):
            yield from module.source.parameters()


@torch.no_grad()
def write_out(model: nn.Module, inside: str = "") -> int:
    """Gives shared places matrices of their own again, equal to those they used; how many these were.

    inside: only where what they use stands below this path.
    """
    found = {path: source for path, source in sources(model).items() if source.startswith(inside)}
    for path, source in found.items():
        parent, _, leaf = path.rpartition(".")
        setattr(model.get_submodule(parent), leaf, copy.deepcopy(model.get_submodule(source)))
    return len(found)


def _is_matrix(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | PackedLinear) or type(module).__name__ == "Conv1D"


def _sizes(module: nn.Module) -> tuple[int, ...]:
    if isinstance(module, PackedLinear):
        return module.out_features, module.in_features
    return tuple(cast(Tensor, module.weight).shape)

"""Matrices of several blocks on one basis: W_b = left_b @ right, right stored once, in the block that comes first.

There stands the whole product, a chain. In the place of each other matrix stands a module with its own `left`, an ordinary
linear layer whose inputs are what the lender's last factor makes of x. So no tensor has two names, what is done to the basis
later holds for all, and `left` is a matrix like any other to later steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from torch import Tensor, nn

from trimtab.core.errors import ModelError
from trimtab.core.kinds import LinearWeight
from trimtab.engine.packed_linear import PackedLinear
from trimtab.formats import Chain, Dense

LEFT = "left"


class BasisLinear(nn.Module):
    """y = left(basis(x)): left, [out, rank] with the bias; the basis [rank, in] is the last factor of what stands at `name`."""

    def __init__(self, left: nn.Module, owner: nn.Module, name: str):
        super().__init__()
        self.left = left
        # Not as a submodule: its tensors would have a second name.
        self.__dict__["owner"] = owner
        self.name = name

    @property
    def lender(self) -> PackedLinear:
        """It is looked up at every call. Raises `ModelError` where no chain stands there any more."""
        found = getattr(self.__dict__["owner"], self.name)
        if not isinstance(found, PackedLinear) or found.spec.get("kind") != Chain.kind:
            raise ModelError(f"{self.name} has no basis to lend any more; open the model again")
        return found

    @property
    def in_features(self) -> int:
        return self.lender.in_features

    @property
    def out_features(self) -> int:
        return cast(int, self.left.out_features)

    @property
    def product(self) -> Chain:
        """What the matrix here would be by itself."""
        own: LinearWeight = self.left.weight_value if isinstance(self.left, PackedLinear) else Dense(_matrix(self.left))
        return Chain((own, cast(Chain, self.lender.weight_value).factors[-1]))

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.left(self.lender.through_last(x)))


def lend(model: nn.Module, path: str, source: str, left: nn.Module) -> None:
    """Puts `left` [out, rank] on the basis of what stands at `source`. Raises `ModelError` where they do not meet."""
    lender, _, leaf = source.rpartition(".")
    parent, _, name = path.rpartition(".")
    made = BasisLinear(left, model.get_submodule(lender), leaf)
    if path == source or made.lender.spec["parts"][-1]["shape"][0] != left.in_features:
        raise ModelError(f"{path} cannot stand on the basis of {source}: {left.in_features} columns do not meet it")
    setattr(model.get_submodule(parent), name, made.train(model.get_submodule(path).training))


def borrowers(model: nn.Module, inside: str = "") -> Iterator[tuple[str, BasisLinear, str]]:
    """(path, module, path of the lender) of what stands on a basis below the path `inside`, or at it."""
    paths = {id(module): path for path, module in model.named_modules()}
    for path, module in model.named_modules():
        if isinstance(module, BasisLinear):
            source = paths[id(module.lender)]
            if f"{source}.".startswith(inside):
                yield path, module, source


def write_out_bases(model: nn.Module, inside: str = "") -> int:
    """Gives each of these the basis as its own; how many they were."""
    found = list(borrowers(model, inside))
    for path, module, _ in found:
        parent, _, name = path.rpartition(".")
        bias = cast("Tensor | None", module.left.bias)
        setattr(model.get_submodule(parent), name, PackedLinear.of(module.product, bias).train(module.training))
    return len(found)


def _matrix(layer: nn.Module) -> Tensor:
    return cast(nn.Linear, layer).weight.detach()

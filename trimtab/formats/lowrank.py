"""Products of weights: W = factors[0] @ factors[1] @ ...; low rank is the product of two thin dense ones."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from trimtab.core.errors import ModelError, UsageError
from trimtab.core.kinds import Layout, LinearWeight
from trimtab.formats import checks, nested
from trimtab.formats.container import Container
from trimtab.formats.dense import Dense


@dataclass(frozen=True, eq=False, repr=False)
class Chain(Container):
    """factors: weights whose inner dimensions meet, outermost output first.

    dense() multiplies in float32 from left to right; applied to x, the last factor comes first. Raises `UsageError`.
    """

    kind: ClassVar[str] = "chain"
    factors: tuple[LinearWeight, ...]
    shape: tuple[int, int] = field(init=False)

    def __post_init__(self) -> None:
        nested.check_count("Chain", self.factors)
        self._store(factors=tuple(self.factors), shape=_meeting([f.shape for f in self.factors], UsageError))

    def dense(self) -> Tensor:
        product = self.factors[0].dense()
        for factor in self.factors[1:]:
            product = product @ factor.dense()
        return product

    def tensors(self) -> dict[str, Tensor]:
        return nested.tensors(self.factors)

    def spec(self) -> dict[str, Any]:
        return {"kind": self.kind, "shape": list(self.shape), "parts": nested.specs(self.factors)}

    @classmethod
    def layout(cls, spec: Mapping[str, Any]) -> Layout:
        checks.fields(spec, cls.kind, "parts")
        whole, shapes = nested.layout(cls.kind, spec["parts"])
        if _meeting(shapes, ModelError) != checks.shape(spec, cls.kind):
            raise ModelError(f"{cls.kind}: shape is {spec['shape']}, the product of the parts {_sizes(shapes)} is not")
        return whole

    @classmethod
    def build(cls, spec: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        checks.match(cls.kind, cls.layout(spec), tensors)
        return cls(nested.build(spec["parts"], tensors))


def low_rank(left: Tensor, right: Tensor, dtype: torch.dtype = torch.float16) -> Chain:
    """left [out, rank] @ right [rank, in], both stored in `dtype`. Raises `UsageError` if that overflows."""
    factors = left.to(dtype), right.to(dtype)
    checks.finite("low rank", left=factors[0], right=factors[1])
    return Chain((Dense(factors[0]), Dense(factors[1])))


def _meeting(shapes: list[tuple[int, int]], error: type[UsageError]) -> tuple[int, int]:
    for left, right in pairwise(shapes):
        if left[1] != right[0]:
            raise error(f"chain: the factors {_sizes(shapes)} do not meet: {left[1]} inputs take {right[0]} outputs")
    return shapes[0][0], shapes[-1][1]


def _sizes(shapes: list[tuple[int, int]]) -> str:
    return ", ".join(f"{out} x {in_}" for out, in_ in shapes)

"""Sums of weights: what one format cannot hold, a second one adds (quantized + low rank, sparse + low rank)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from torch import Tensor

from trimtab.core.errors import ModelError, UsageError
from trimtab.core.kinds import Layout, LinearWeight
from trimtab.formats import checks, nested
from trimtab.formats.container import Container


@dataclass(frozen=True, eq=False, repr=False)
class Sum(Container):
    """parts: weights of one shape. dense() adds them in float32, in order. Raises `UsageError`."""

    kind: ClassVar[str] = "sum"
    parts: tuple[LinearWeight, ...]
    shape: tuple[int, int] = field(init=False)

    def __post_init__(self) -> None:
        nested.check_count("Sum", self.parts)
        _check_equal([p.shape for p in self.parts], self.parts[0].shape, UsageError)
        self._store(parts=tuple(self.parts), shape=self.parts[0].shape)

    def dense(self) -> Tensor:
        total = self.parts[0].dense()
        for part in self.parts[1:]:
            total = total + part.dense()
        return total

    def tensors(self) -> dict[str, Tensor]:
        return nested.tensors(self.parts)

    def spec(self) -> dict[str, Any]:
        return {"kind": self.kind, "shape": list(self.shape), "parts": nested.specs(self.parts)}

    @classmethod
    def layout(cls, spec: Mapping[str, Any]) -> Layout:
        checks.fields(spec, cls.kind, "parts")
        whole, shapes = nested.layout(cls.kind, spec["parts"])
        _check_equal(shapes, checks.shape(spec, cls.kind), ModelError)
        return whole

    @classmethod
    def build(cls, spec: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        checks.match(cls.kind, cls.layout(spec), tensors)
        return cls(nested.build(spec["parts"], tensors))


def _check_equal(shapes: list[tuple[int, int]], shape: tuple[int, int], error: type[UsageError]) -> None:
    for i, found in enumerate(shapes):
        if found != shape:
            raise error(f"sum: part {i} is {found[0]} x {found[1]}, the sum is {shape[0]} x {shape[1]}")

"""Kronecker products of two small matrices: what mixes thousands of channels at the cost of a few dozen each."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from trimtab.core.errors import UsageError
from trimtab.core.kinds import Layout
from trimtab.formats import checks
from trimtab.formats.container import Container
from trimtab.tensors.kronecker import along


@dataclass(frozen=True, eq=False, repr=False)
class Kronecker(Container):
    """(left (x) right) diag(scale): left [a, b] and right [c, d] of one dtype, scale [b * d] of it or None for ones.

    Applied factor by factor, never multiplied out. Raises `UsageError`.
    """

    kind: ClassVar[str] = "kronecker"
    left: Tensor
    right: Tensor
    scale: Tensor | None = None
    shape: tuple[int, int] = field(init=False)

    def __post_init__(self) -> None:
        (a, b), (c, d) = (checks.matrix("Kronecker", n, t) for n, t in (("left", self.left), ("right", self.right)))
        checks.dtype_name(self.left.dtype, "Kronecker")
        checks.expect("Kronecker", "right", self.right, (c, d), self.left.dtype)
        if self.scale is not None:
            checks.expect("Kronecker", "scale", self.scale, (b * d,), self.left.dtype)
        checks.finite("Kronecker", UsageError, left=self.left, right=self.right, scale=self.scale)
        self._store(left=self.left, right=self.right, scale=self.scale, shape=(a * c, b * d))

    def applied(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out], in the dtype of x."""
        scaled = x if self.scale is None else x * self.scale.to(x.dtype)
        return along(scaled, self.left.to(x.dtype), self.right.to(x.dtype))

    def dense(self) -> Tensor:
        product = torch.kron(self.left.float(), self.right.float())
        return product if self.scale is None else product * self.scale.float()

    def tensors(self) -> dict[str, Tensor]:
        found = {"left": self.left, "right": self.right}
        return found if self.scale is None else {**found, "scale": self.scale}

    def spec(self) -> dict[str, Any]:
        dtype = checks.dtype_name(self.left.dtype, self.kind)
        return kronecker_spec(self.shape, (int(self.left.shape[0]), int(self.left.shape[1])), self.scale is not None, dtype)

    @classmethod
    def layout(cls, spec: Mapping[str, Any]) -> Layout:
        checks.fields(spec, cls.kind, "dtype", "rows", "columns", "scaled")
        out, in_ = checks.shape(spec, cls.kind)
        rows, columns = (checks.whole(spec[name], cls.kind, name) for name in ("rows", "columns"))
        dtype = checks.dtype(spec["dtype"], cls.kind)
        right = checks.divides(rows, out, cls.kind, "rows"), checks.divides(columns, in_, cls.kind, "columns")
        found: Layout = {"left": ((rows, columns), dtype), "right": (right, dtype)}
        return found | {"scale": ((in_,), dtype)} if checks.flag(spec["scaled"], cls.kind, "scaled") else found

    @classmethod
    def build(cls, spec: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        checks.match(cls.kind, cls.layout(spec), tensors)
        return cls(tensors["left"], tensors["right"], tensors.get("scale"))


def kronecker_spec(shape: tuple[int, int], left: tuple[int, int], scaled: bool, dtype: str) -> dict[str, Any]:
    """The spec of a product whose first factor has the shape `left`."""
    own = {"dtype": dtype, "rows": left[0], "columns": left[1], "scaled": scaled}
    return {"kind": Kronecker.kind, "shape": list(shape), **own}

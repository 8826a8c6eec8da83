"""Another order of the inputs as a weight of its own: the last factor of a chain whose other factors were made for that order."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from trimtab.core.errors import ModelError, UsageError
from trimtab.core.kinds import Layout
from trimtab.formats import checks
from trimtab.formats.container import Container


@dataclass(frozen=True, eq=False, repr=False)
class Permutation(Container):
    """y[i] = x[order[i]]; order: [n] whole numbers, every one below n once, held as int32. Raises `UsageError`."""

    kind: ClassVar[str] = "permutation"
    order: Tensor
    shape: tuple[int, int] = field(init=False)

    def __post_init__(self) -> None:
        if self.order.ndim != 1 or not len(self.order) or not _is_whole(self.order):
            raise UsageError("Permutation: order must be [n], with every number below n once")
        self._store(order=self.order.to(torch.int32), shape=(len(self.order), len(self.order)))

    def applied(self, x: Tensor) -> Tensor:
        """x [..., in] in the other order."""
        return x[..., self.order.long()]

    def dense(self) -> Tensor:
        return torch.eye(self.shape[0], device=self.order.device)[self.order.long()]

    def tensors(self) -> dict[str, Tensor]:
        return {"order": self.order}

    def spec(self) -> dict[str, Any]:
        return {"kind": self.kind, "shape": list(self.shape)}

    @classmethod
    def layout(cls, spec: Mapping[str, Any]) -> Layout:
        checks.fields(spec, cls.kind)
        out, in_ = checks.shape(spec, cls.kind)
        if out != in_:
            raise ModelError(f"{cls.kind}: an order of inputs is square, its shape is {[out, in_]}")
        return {"order": ((in_,), torch.int32)}

    @classmethod
    def build(cls, spec: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        checks.match(cls.kind, cls.layout(spec), tensors)
        if not _is_whole(tensors["order"]):
            raise ModelError(f"{cls.kind}: the order names an input twice, or one that there is not; the file is damaged")
        return cls(tensors["order"])


def _is_whole(order: Tensor) -> bool:
    return not order.is_floating_point() and torch.equal(
        order.long().sort().values, torch.arange(len(order), device=order.device)
    )

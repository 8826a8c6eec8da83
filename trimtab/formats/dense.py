"""A plain matrix in the dtype it was stored in."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from torch import Tensor

from trimtab.core.kinds import Layout
from trimtab.formats import checks
from trimtab.formats.container import Container


@dataclass(frozen=True, eq=False, repr=False)
class Dense(Container):
    """weight: [out, in] float64, float32, float16 or bfloat16, kept as it is and not copied."""

    kind: ClassVar[str] = "dense"
    weight: Tensor
    shape: tuple[int, int] = field(init=False)

    def __post_init__(self) -> None:
        checks.dtype_name(self.weight.dtype, "Dense")
        self._store(weight=self.weight, shape=checks.matrix("Dense", "weight", self.weight))

    def dense(self) -> Tensor:
        return self.weight.float()

    def tensors(self) -> dict[str, Tensor]:
        return {"weight": self.weight}

    def spec(self) -> dict[str, Any]:
        return {"kind": self.kind, "shape": list(self.shape), "dtype": checks.dtype_name(self.weight.dtype, self.kind)}

    @classmethod
    def layout(cls, spec: Mapping[str, Any]) -> Layout:
        checks.fields(spec, cls.kind, "dtype")
        return {"weight": (checks.shape(spec, cls.kind), checks.dtype(spec["dtype"], cls.kind))}

    @classmethod
    def build(cls, spec: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        checks.match(cls.kind, cls.layout(spec), tensors)
        return cls(tensors["weight"])

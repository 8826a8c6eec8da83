"""Butterfly products: the structure of fast transforms in the place of a matrix, 2 n log2 n numbers instead of n^2."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from trimtab.core.errors import ModelError, UsageError
from trimtab.core.kinds import Layout
from trimtab.formats import checks
from trimtab.formats.container import Container
from trimtab.tensors import butterfly

LARGEST = 2**15  # inputs: the fewer numbers a file holds per weight, the more memory a small file can ask for


@dataclass(frozen=True, eq=False, repr=False)
class Butterfly(Container):
    """Stacked butterflies (`tensors.butterfly`), of which only is stored what a matrix [out, in] needs. Raises `UsageError`.

    n is the power of two, at least 8, that is not below `in`; stacks ceil(out / n). first: [stacks, in, 2], middle: [stacks,
    log2 n - 2, n / 2, 2, 2], last: [out, 2]; of one dtype.
    """

    kind: ClassVar[str] = "butterfly"
    first: Tensor
    middle: Tensor
    last: Tensor
    shape: tuple[int, int] = field(init=False)

    def __post_init__(self) -> None:
        if self.first.ndim != 3 or self.last.ndim != 2 or not self.first.numel() or not self.last.numel():
            got = f"{list(self.first.shape)} and {list(self.last.shape)}"
            raise UsageError(f"Butterfly: first must be [stacks, in, 2] and last [out, 2], got {got}")
        shape, dtype = (len(self.last), self.first.shape[1]), self.first.dtype
        _check_inputs(shape, UsageError)
        checks.dtype_name(dtype, "Butterfly")
        for name, size in _sizes(shape).items():
            checks.expect("Butterfly", name, getattr(self, name), size, dtype)
        checks.finite("Butterfly", first=self.first, middle=self.middle, last=self.last)
        self._store(first=self.first, middle=self.middle, last=self.last, shape=shape)

    @classmethod
    def of(cls, twiddle: Tensor, shape: tuple[int, int]) -> Self:
        """From all factors of all stacks, [stacks, log2 n, n / 2, 2, 2]."""
        return cls(*butterfly.used(twiddle, shape))

    @property
    def twiddle(self) -> Tensor:
        """float32 [stacks, log2 n, n / 2, 2, 2], with zeros for what is not stored."""
        return butterfly.whole(self.first.float(), self.middle.float(), self.last.float())

    @property
    def is_short(self) -> bool:
        """Whether going from factor to factor multiplies less than the matrix would."""
        stacks, levels, half = self.middle.shape[:3]
        return 4 * stacks * (levels + 2) * half < self.shape[0] * self.shape[1]

    def times(self, x: Tensor) -> Tensor:
        """x [tokens, in] float32 -> [tokens, out], factor by factor."""
        padded = torch.nn.functional.pad(x, (0, 2 * self.middle.shape[2] - self.shape[1]))
        return butterfly.applied(padded[:, None], self.twiddle).flatten(1)[:, : self.shape[0]]

    def dense(self) -> Tensor:
        return butterfly.product(self.twiddle).flatten(0, 1)[: self.shape[0], : self.shape[1]].contiguous()

    def tensors(self) -> dict[str, Tensor]:
        return {"first": self.first, "middle": self.middle, "last": self.last}

    def spec(self) -> dict[str, Any]:
        return butterfly_spec(self.shape, checks.dtype_name(self.first.dtype, self.kind))

    @classmethod
    def layout(cls, spec: Mapping[str, Any]) -> Layout:
        checks.fields(spec, cls.kind, "dtype")
        shape, dtype = checks.shape(spec, cls.kind), checks.dtype(spec["dtype"], cls.kind)
        _check_inputs(shape, ModelError)
        return {name: (size, dtype) for name, size in _sizes(shape).items()}

    @classmethod
    def build(cls, spec: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        checks.match(cls.kind, cls.layout(spec), tensors)
        return cls(**tensors)


def butterfly_spec(shape: tuple[int, int], dtype: str) -> dict[str, Any]:
    """The spec of a butterfly of this shape. dtype: by name, e.g. "float16"."""
    return {"kind": Butterfly.kind, "shape": [*shape], "dtype": dtype}


def _sizes(shape: tuple[int, int]) -> dict[str, tuple[int, ...]]:
    size, stacks = butterfly.size_for(shape[1]), butterfly.stacks_for(shape)
    middle = stacks, size.bit_length() - 3, size // 2, 2, 2
    return {"first": (stacks, shape[1], 2), "middle": middle, "last": (shape[0], 2)}


def _check_inputs(shape: tuple[int, int], error: type[UsageError]) -> None:
    if shape[1] > LARGEST:
        raise error(f"butterfly: at most {LARGEST} inputs, got {shape[1]}")

"""Matrix product operators: small cores in a row, in the place of a matrix; with two sites a sum of Kronecker products."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod
from typing import Any, ClassVar, Self

from torch import Tensor

from trimtab.core.errors import ModelError, UsageError
from trimtab.core.kinds import Layout
from trimtab.formats import checks
from trimtab.formats.container import Container
from trimtab.tensors import mpo

MOST_SITES = 16
MOST_PER_NUMBER = 4096  # weights: the fewer numbers a file holds, the more memory a small file can ask for


@dataclass(frozen=True, eq=False, repr=False)
class Mpo(Container):
    """cores: of one dtype, core j [bond before, outputs, inputs, bond after], first and last bond 1. Raises `UsageError`."""

    kind: ClassVar[str] = "mpo"
    cores: tuple[Tensor, ...]
    shape: tuple[int, int] = field(init=False)

    def __post_init__(self) -> None:
        sizes = [tuple(core.shape) for core in self.cores]
        if not 1 <= len(sizes) <= MOST_SITES or any(len(size) != 4 or not all(size) for size in sizes):
            raise UsageError(f"Mpo: 1 to {MOST_SITES} cores of four axes are needed, got {sizes}")
        ends = sizes[0][0], sizes[-1][3]
        if ends != (1, 1) or any(left[3] != right[0] for left, right in pairwise(sizes)):
            raise UsageError(f"Mpo: the bonds of the cores {sizes} do not meet, or do not end in 1")
        names = {checks.dtype_name(core.dtype, "Mpo") for core in self.cores}
        if len(names) > 1:
            raise UsageError(f"Mpo: the cores are of different dtypes: {', '.join(sorted(names))}")
        for core in self.cores:
            checks.finite("Mpo", core=core)
        shape = prod(size[1] for size in sizes), prod(size[2] for size in sizes)
        _check_numbers(sizes, shape, UsageError)
        self._store(cores=tuple(core.contiguous() for core in self.cores), shape=shape)

    @property
    def out(self) -> tuple[int, ...]:
        return tuple(core.shape[1] for core in self.cores)

    @property
    def inputs(self) -> tuple[int, ...]:
        return tuple(core.shape[2] for core in self.cores)

    @property
    def bonds(self) -> tuple[int, ...]:
        return 1, *(core.shape[3] for core in self.cores)

    @property
    def is_short(self) -> bool:
        """Whether going from core to core multiplies less than the matrix would."""
        return mpo.multiplications(self.out, self.inputs, self.bonds) < self.shape[0] * self.shape[1]

    def times(self, x: Tensor) -> Tensor:
        """x [tokens, in] float32 -> [tokens, out], core by core."""
        return mpo.applied(x, [core.float() for core in self.cores])

    def dense(self) -> Tensor:
        return mpo.product(self.cores)

    def tensors(self) -> dict[str, Tensor]:
        return {f"core_{j}": core for j, core in enumerate(self.cores)}

    def spec(self) -> dict[str, Any]:
        return mpo_spec(self.out, self.inputs, self.bonds, checks.dtype_name(self.cores[0].dtype, self.kind))

    @classmethod
    def layout(cls, spec: Mapping[str, Any]) -> Layout:
        checks.fields(spec, cls.kind, "dtype", "out", "in", "bonds")
        dtype, shape = checks.dtype(spec["dtype"], cls.kind), checks.shape(spec, cls.kind)
        out, inputs, bonds = (_sizes(spec[name], name) for name in ("out", "in", "bonds"))
        if not len(out) == len(inputs) == len(bonds) - 1 or (bonds[0], bonds[-1]) != (1, 1):
            raise ModelError(f"{cls.kind}: {len(out)} and {len(inputs)} sites have {len(bonds)} bonds, the first and last 1")
        if (prod(out), prod(inputs)) != shape:
            raise ModelError(f"{cls.kind}: shape is {list(shape)}, the sites make {prod(out)} x {prod(inputs)}")
        sizes = list(zip(bonds[:-1], out, inputs, bonds[1:], strict=True))
        _check_numbers(sizes, shape, ModelError)
        return {f"core_{j}": (size, dtype) for j, size in enumerate(sizes)}

    @classmethod
    def build(cls, spec: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        layout = cls.layout(spec)
        checks.match(cls.kind, layout, tensors)
        return cls(tuple(tensors[name] for name in layout))


def mpo_spec(out: Sequence[int], inputs: Sequence[int], bonds: Sequence[int], dtype: str) -> dict[str, Any]:
    """The spec of cores of these sizes. dtype: by name, e.g. "float16"."""
    shape = [prod(out), prod(inputs)]
    return {"kind": Mpo.kind, "shape": shape, "dtype": dtype, "out": [*out], "in": [*inputs], "bonds": [*bonds]}


def _check_numbers(sizes: Sequence[tuple[int, ...]], shape: tuple[int, int], error: type[UsageError]) -> None:
    held = sum(map(prod, sizes))
    if held * MOST_PER_NUMBER < shape[0] * shape[1]:
        raise error(f"mpo: {held} numbers for {shape[0]} x {shape[1]} weights; at most {MOST_PER_NUMBER} weights a number")


def _sizes(value: Any, name: str) -> tuple[int, ...]:
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= MOST_SITES + 1:
        raise ModelError(f"{Mpo.kind}: {name} must be a list of 1 to {MOST_SITES} sizes, got {checks.shown(value)}")
    return tuple(checks.whole(size, Mpo.kind, f"{name}[{j}]") for j, size in enumerate(value))

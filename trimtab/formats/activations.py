"""A weight that rounds what it is given: y = inner applied to round(x), every token on a grid of its own.

The rule belongs to the weight because it is applied in front of one matrix, is chosen matrix by matrix, and has to be saved and
opened with it. dense() is that of `inner`: it says what is multiplied, not what happened to the inputs before; so statistics,
errors of weights and everything else that asks for the matrix mean the matrix. `formats.linear` rounds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from torch import Tensor

from trimtab.core.errors import ModelError, UsageError
from trimtab.core.kinds import Layout, LinearWeight
from trimtab.core.places import Role, Site
from trimtab.formats import checks, nested
from trimtab.formats.container import Container
from trimtab.tensors.activations import per_token, per_token_e4m3

FEWEST, MOST = 2, 8  # bits
PLAIN = (MOST, 1.0, 0)  # bits, clip and loud of floating numbers


@dataclass(frozen=True, eq=False, repr=False)
class Activations(Container):
    """inner: any weight; input_bits, group_size, clip, loud: as in `tensors.activations.per_token`. Raises `UsageError`.

    floating: inputs become e4m3 numbers, which have 8 bits; clip and loud are for integers.
    """

    kind: ClassVar[str] = "activations"
    inner: LinearWeight
    input_bits: int
    group_size: int
    clip: float = 1.0
    loud: int = 0
    floating: bool = False
    shape: tuple[int, int] = field(init=False)

    def __post_init__(self) -> None:
        in_ = self.inner.shape[1]
        if not FEWEST <= self.input_bits <= MOST:
            raise UsageError(f"Activations: bits must be from {FEWEST} to {MOST}, got {self.input_bits}")
        if self.group_size < 1 or in_ % self.group_size:
            raise UsageError(f"Activations: group_size {self.group_size} does not divide in={in_}; use {in_}")
        if not 0 < self.clip <= 1:
            raise UsageError(f"Activations: clip must be above 0 and at most 1, got {self.clip:g}")
        if not 0 <= self.loud <= in_ // self.group_size:
            raise UsageError(f"Activations: of {in_ // self.group_size} groups {self.loud} cannot be loud")
        if self.floating and (self.input_bits, self.clip, self.loud) != PLAIN:
            raise UsageError("Activations: floating numbers have 8 bits, are not clipped, and no group of them is louder")
        self._store(shape=self.inner.shape)

    def rounded(self, x: Tensor) -> Tensor:
        """What `inner` is given for x [..., in]."""
        if self.floating:
            return per_token_e4m3(x, self.group_size)
        return per_token(x, self.input_bits, self.group_size, self.clip, self.loud)

    def dense(self) -> Tensor:
        return self.inner.dense()

    def tensors(self) -> dict[str, Tensor]:
        return nested.tensors([self.inner])

    def spec(self) -> dict[str, Any]:
        (inner,) = nested.specs([self.inner])
        return activations_spec(inner, self.input_bits, self.group_size, self.clip, self.loud, self.floating)

    @classmethod
    def layout(cls, spec: Mapping[str, Any]) -> Layout:
        checks.fields(spec, cls.kind, "input_bits", "group_size", "clip", "loud", "floating", "parts")
        shape = checks.shape(spec, cls.kind)
        checks.whole(spec["input_bits"], cls.kind, "input_bits", FEWEST, MOST)
        groups = checks.divides(checks.whole(spec["group_size"], cls.kind, "group_size"), shape[1], cls.kind, "group_size")
        checks.whole(spec["loud"], cls.kind, "loud", 0, groups)
        clip = spec["clip"]
        if not isinstance(clip, float) or not 0 < clip <= 1:
            raise ModelError(f"{cls.kind}: clip must be a number above 0 and at most 1, got {checks.shown(clip)}")
        if checks.flag(spec["floating"], cls.kind, "floating") and (spec["input_bits"], clip, spec["loud"]) != PLAIN:
            raise ModelError(f"{cls.kind}: floating numbers have 8 bits, clip 1 and no loud groups; the file is damaged")
        whole, shapes = nested.layout(cls.kind, spec["parts"], most=1)
        if shapes[0] != shape:
            raise ModelError(f"{cls.kind}: shape is {list(shape)}, its part is {list(shapes[0])}")
        return whole

    @classmethod
    def build(cls, spec: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        checks.match(cls.kind, cls.layout(spec), tensors)
        (inner,) = nested.build(spec["parts"], tensors)
        return cls(inner, spec["input_bits"], spec["group_size"], spec["clip"], spec["loud"], spec["floating"])


def activations_spec(
    inner: Mapping[str, Any], bits: int, group_size: int, clip: float, loud: int = 0, floating: bool = False
) -> dict[str, Any]:
    """The spec of `Activations` around a weight of this spec. group_size 0: all inputs together."""
    shape = list(inner["shape"])
    own = {"input_bits": bits, "group_size": group_size or shape[1], "clip": float(clip), "loud": loud}
    return {"kind": Activations.kind, "shape": shape, **own, "floating": floating, "parts": [dict(inner)]}


def check_inputs(who: str, site: Site) -> None:
    """Raises `UsageError` for a matrix that is not given activations as an ordinary layer is."""
    if site.index is not None or site.role is Role.EMBED:
        raise UsageError(f"{who} rounds what layers are given; {site.name} is no layer of its own, skip it")


def rounds_inputs(spec: Mapping[str, Any]) -> bool:
    """Whether a weight of this spec does more to its inputs than to multiply them: its matrix alone does not stand for it."""
    return spec["kind"] == Activations.kind or any(map(rounds_inputs, spec.get("parts", ())))

"""Directions on a pyramid of whole numbers, and lengths from a short table: vector quantization without a codebook to store.

A group of inputs is a length times the direction of a point whose magnitudes sum to `pulses`; the point is stored as its
number among all of them (`tensors.pyramid`). Whole numbers with a scale per group could hold the same in `Grouped`, at a
multiple of the bits: a point of 16 coordinates and 12 pulses takes 32 bits and not 16 times the 5 bits of its largest entry.
Cost: (index_bits(group_size, pulses) + radius_bits) / group_size + 16 / in, and the table.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from trimtab.core.errors import ModelError, UsageError
from trimtab.core.kinds import Layout
from trimtab.formats import checks
from trimtab.formats.container import Container
from trimtab.formats.grouped import check_group_size
from trimtab.tensors.packing import pack, packed_width, unpack
from trimtab.tensors.pyramid import exist, index_bits, numbered, numbers

LONGEST = 256  # coordinates of a point
MOST_PULSES = 1024
AT_ONCE = 2**14  # points that are numbered together, so that their bits do not fill the memory


@dataclass(frozen=True, eq=False, init=False, repr=False)
class Pyramid(Container):
    """w[o, i] = scale[o] * radii[codes[o, g]] / |point[o, g]| * point[o, g, i - g * group_size], g = i // group_size.

    The factor before the point in float32, in this order. Made from points int16 [out, in], the magnitudes of every group
    summing to the same `pulses`, codes uint8 [out, groups], radii float16 [2**radius_bits], scale float16 [out]. Raises
    `UsageError`.
    """

    kind: ClassVar[str] = "pyramid"
    packed: Tensor
    packed_codes: Tensor
    radii: Tensor
    scale: Tensor
    shape: tuple[int, int]
    group_size: int
    pulses: int

    def __init__(self, points: Tensor, codes: Tensor, radii: Tensor, scale: Tensor, group_size: int):
        out, in_ = shape = checks.matrix("Pyramid", "points", points)
        check_group_size(in_, group_size, "the matrix")
        if radii.ndim != 1 or len(radii) not in [2**bits for bits in range(1, 9)]:
            raise UsageError(f"Pyramid: radii must be 2, 4, 8 ... 256 lengths, got {list(radii.shape)}")
        checks.expect("Pyramid", "codes", codes, (out, in_ // group_size), torch.uint8)
        checks.expect("Pyramid", "radii", radii, (len(radii),), torch.float16)
        checks.expect("Pyramid", "scale", scale, (out,), torch.float16)
        checks.finite("Pyramid", radii=radii, scale=scale)
        checks.expect("Pyramid", "points", points, shape, torch.int16)
        groups = points.reshape(-1, group_size)
        pulses = _pulses(groups)
        if not (group_size <= LONGEST and 1 <= pulses <= MOST_PULSES):
            raise UsageError(f"Pyramid: at most {LONGEST} inputs and 1 to {MOST_PULSES} pulses, got {group_size} and {pulses}")
        if int(codes.max()) >= len(radii):
            raise UsageError(f"Pyramid: codes go up to {int(codes.max())}; there are {len(radii)} radii")
        index = torch.cat([numbers(some, pulses) for some in torch.split(groups, AT_ONCE)])
        self._store(
            packed=pack(index.view(out, -1), 1),
            packed_codes=pack(codes, _bits(radii)),
            radii=radii,
            scale=scale,
            shape=shape,
            group_size=group_size,
            pulses=pulses,
        )

    @property
    def points(self) -> Tensor:
        """int16 [out, in]."""
        some = _indices(self.packed, self.shape[1] // self.group_size, index_bits(self.group_size, self.pulses))
        return torch.cat([numbered(index, self.group_size, self.pulses) for index in some]).view(self.shape)

    @property
    def codes(self) -> Tensor:
        """uint8 [out, groups]: which radius a group has."""
        return unpack(self.packed_codes, _bits(self.radii), self.shape[1] // self.group_size)

    def dense(self) -> Tensor:
        points = self.points.float().view(self.shape[0], -1, self.group_size)
        length = points.square().sum(-1).sqrt()
        factor = self.scale.float()[:, None] * self.radii.float()[self.codes.long()] / length
        return (factor.unsqueeze(-1) * points).view(self.shape)

    def tensors(self) -> dict[str, Tensor]:
        return {"points": self.packed, "codes": self.packed_codes, "radii": self.radii, "scale": self.scale}

    def spec(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "shape": list(self.shape),
            "group_size": self.group_size,
            "pulses": self.pulses,
            "radius_bits": _bits(self.radii),
        }

    @classmethod
    def layout(cls, spec: Mapping[str, Any]) -> Layout:
        checks.fields(spec, cls.kind, "group_size", "pulses", "radius_bits")
        out, in_ = checks.shape(spec, cls.kind)
        group_size = checks.whole(spec["group_size"], cls.kind, "group_size", 1, LONGEST)
        pulses = checks.whole(spec["pulses"], cls.kind, "pulses", 1, MOST_PULSES)
        radius_bits = checks.whole(spec["radius_bits"], cls.kind, "radius_bits", 1, 8)
        groups = checks.divides(group_size, in_, cls.kind, "group_size")
        return {
            "points": ((out, packed_width(groups * index_bits(group_size, pulses), 1)), torch.uint8),
            "codes": ((out, packed_width(groups, radius_bits)), torch.uint8),
            "radii": ((2**radius_bits,), torch.float16),
            "scale": ((out,), torch.float16),
        }

    @classmethod
    def build(cls, spec: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        checks.match(cls.kind, cls.layout(spec), tensors)
        checks.finite(cls.kind, ModelError, radii=tensors["radii"], scale=tensors["scale"])
        shape = checks.shape(spec, cls.kind)
        dim, pulses = spec["group_size"], spec["pulses"]
        if not all(exist(index, dim, pulses) for index in _indices(tensors["points"], shape[1] // dim, index_bits(dim, pulses))):
            raise ModelError(f"{cls.kind}: tensor 'points' goes beyond the points that there are")
        return cls._restore(
            packed=tensors["points"],
            packed_codes=tensors["codes"],
            radii=tensors["radii"],
            scale=tensors["scale"],
            shape=shape,
            group_size=dim,
            pulses=pulses,
        )


def _pulses(groups: Tensor) -> int:
    """What the magnitudes of every group [groups, group_size] sum to. Raises `UsageError` if not all to the same."""
    sums = groups.abs().sum(1)
    if bool((sums != sums[0]).any()):
        raise UsageError(f"Pyramid: magnitudes of points sum to {int(sums.min())} and {int(sums.max())}; they must not differ")
    return int(sums[0])


def _bits(radii: Tensor) -> int:
    return (len(radii) - 1).bit_length()


def _indices(packed: Tensor, groups: int, bits: int) -> Iterator[Tensor]:
    """The numbers of all points in order, as bits [some, bits], of so many rows at a time that they fit into memory."""
    for rows in torch.split(packed, max(1, AT_ONCE // groups)):
        yield unpack(rows, 1, groups * bits).view(-1, bits)

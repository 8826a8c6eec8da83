"""Integers with group scales as the block formats of GGUF: the same numbers, laid out 32 at a time.

A block of 32 consecutive inputs has a float16 step d, in some formats a float16 offset m, and small whole numbers q:

    Q4_0  d * (q - 8)     q of 4 bits        Q4_1  d * q + m    q of 4 bits
    Q5_0  d * (q - 16)    q of 5 bits        Q5_1  d * q + m    q of 5 bits
    Q8_0  d * q           q from -128 to 127

A matrix of ours is (code - zero) * scale. Where groups are whole blocks it is exact in the first format of which the range
holds every code - zero: 3 bits with zero points reach from -7 to 7 and are Q4_0, 4 bits with zero points reach from -15 to
15 and are Q5_0, or Q4_1 where every -zero * scale is a float16.
"""

from dataclasses import dataclass

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trimtab.formats import Grouped
from trimtab.host.export.gguf_k import q4_k

Kind = gguf.GGMLQuantizationType
Bytes = NDArray[np.uint8]
BLOCK = 32
CENTRED = ((Kind.Q4_0, -8, 7), (Kind.Q5_0, -16, 15), (Kind.Q8_0, -128, 127))
SHIFTED = ((Kind.Q4_1, 15), (Kind.Q5_1, 31))
GRIDS = (Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0)
PLAIN = {torch.float16: Kind.F16, torch.bfloat16: Kind.BF16, torch.float32: Kind.F32}
SAMPLE = 8  # rows that are tried before a whole matrix is


@dataclass(frozen=True, eq=False)
class Steps:
    """levels int16 [out, in], scale float16 [out, in / 32]: the matrix is levels * scale.

    floor int16 [out, in / 32] is what all levels of a group are counted from, where the codes start at 0.
    """

    levels: Tensor
    scale: Tensor
    floor: Tensor | None

    @classmethod
    def of(cls, weight: Grouped) -> "Steps | None":
        """None where a group is not a whole number of blocks."""
        out, in_ = weight.shape
        if weight.group_size % BLOCK:
            return None
        repeat = weight.group_size // BLOCK
        zero = weight.zero
        zeros = torch.full_like(weight.scale, 2.0 ** (weight.code_bits - 1)) if zero is None else zero
        levels = weight.codes.to(torch.int16).view(out, -1, weight.group_size) - zeros.to(torch.int16).unsqueeze(-1)
        floor = None if zero is None else (-zero.to(torch.int16)).repeat_interleave(repeat, 1)
        return cls(levels.view(out, in_), weight.scale.repeat_interleave(repeat, 1), floor)

    def rows(self, order: Tensor | None) -> "Steps":
        """With its rows in another order."""
        if order is None:
            return self
        return Steps(self.levels[order], self.scale[order], None if self.floor is None else self.floor[order])

    def kind(self) -> "gguf.GGMLQuantizationType | None":
        """The smallest format that holds every number as it is; None if none does."""
        low, high = (int(found) for found in torch.aminmax(self.levels))
        kinds = [kind for kind, least, most in CENTRED if least <= low and high <= most]
        if self.floor is not None and keeps_floor(self.floor, self.scale):
            height = int((self._blocks() - self.floor.unsqueeze(-1)).max())
            kinds += [kind for kind, most in SHIFTED if height <= most]
        return min(kinds, key=bits, default=None)

    def encoded(self, kind: "gguf.GGMLQuantizationType") -> Bytes:
        """uint8 [out, bytes]."""
        step = _bytes(self.scale)
        if kind is Kind.Q8_0:
            return _rows([step, self._blocks().to(torch.int8).numpy().view(np.uint8)])
        if kind in (Kind.Q4_1, Kind.Q5_1):
            assert self.floor is not None, "only codes that start at 0 have an offset"
            offset = _bytes((self.floor.float() * self.scale.float()).half())
            return _rows([step, offset, *_nibbles(self._blocks() - self.floor.unsqueeze(-1), kind is Kind.Q5_1)])
        middle = 8 if kind is Kind.Q4_0 else 16
        return _rows([step, *_nibbles(self._blocks() + middle, kind is Kind.Q5_0)])

    def _blocks(self) -> Tensor:
        return self.levels.view(len(self.levels), -1, BLOCK)


def keeps_floor(floor: Tensor, scale: Tensor) -> bool:
    """Whether every floor * scale is a float16."""
    product = floor.float() * scale.float()
    return torch.equal(product.half().float(), product)


def bits(kind: "gguf.GGMLQuantizationType") -> float:
    """Stored bits per weight."""
    numbers, size = gguf.GGML_QUANT_SIZES[kind]
    return 8 * size / numbers


def block(kind: "gguf.GGMLQuantizationType") -> int:
    """How many inputs a block holds; 1 for plain numbers."""
    return int(gguf.GGML_QUANT_SIZES[kind][0])


def stored_bytes(kind: "gguf.GGMLQuantizationType", shape: tuple[int, ...]) -> int:
    numbers, size = gguf.GGML_QUANT_SIZES[kind]
    return int(np.prod(shape)) // numbers * size


def grid_of(values: Tensor) -> "gguf.GGMLQuantizationType | None":
    """The block format that a float32 matrix came from, if rounding it to that format changes nothing."""
    if values.shape[1] % BLOCK:
        return None
    for kind in GRIDS:
        if all(torch.equal(decoded(encoded(part, kind), kind), part) for part in (values[:SAMPLE], values)):
            return kind
    return None


def encoded(values: Tensor, kind: "gguf.GGMLQuantizationType") -> NDArray[np.generic]:
    """A float matrix in a format of GGUF, rounded as that format's reference rounds."""
    if kind is Kind.F16:
        return values.half().numpy()
    if kind is Kind.Q4_K:
        return q4_k(values)
    return gguf.quants.quantize(values.float().numpy(), kind)


def decoded(stored: NDArray[np.generic], kind: "gguf.GGMLQuantizationType") -> Tensor:
    """float32, as every reader computes it."""
    return torch.from_numpy(np.array(gguf.quants.dequantize(stored, kind), dtype=np.float32))


def _nibbles(numbers: Tensor, fifth: bool) -> list[Bytes]:
    """numbers [out, blocks, 32] below 16 or 32: the fifth bits as one little-endian word, then pairs (i, i + 16) of the rest."""
    found = numbers.to(torch.uint8).numpy()
    half = BLOCK // 2
    low = (found[..., :half] & 15) | ((found[..., half:] & 15) << 4)
    return [*([np.packbits(found >> 4, axis=-1, bitorder="little")] if fifth else []), low]


def _bytes(halves: Tensor) -> Bytes:
    """float16 [out, blocks] -> uint8 [out, blocks, 2], little-endian."""
    held: Bytes = halves.contiguous().numpy().astype("<f2").view(np.uint8)
    return held.reshape(*halves.shape, 2)


def _rows(parts: list[Bytes]) -> Bytes:
    joined = np.concatenate(parts, axis=-1)
    return joined.reshape(len(joined), -1)

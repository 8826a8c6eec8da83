"""Exact bit packing: small integers laid end to end, so that a 3-bit code costs three bits and not a byte.

A row is one little-endian bit stream: code i occupies bits i*bits .. i*bits + bits - 1, and stream bit k is bit k % 8 of
byte k // 8. Rows start on byte boundaries, so rows can be cut, reordered and read alone; the bits that pad the last byte
of a row are zero. The stream is defined by its bits, not by a word size, so files do not depend on the machine.
"""

from math import gcd

import torch
import torch.nn.functional as F
from torch import Tensor


def packed_width(n: int, bits: int) -> int:
    """Bytes that n codes of `bits` bits take."""
    return -(-n * bits // 8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """codes: uint8 [rows, n], each < 2**bits; bits 1 to 8 -> uint8 [rows, ceil(n * bits / 8)].

    Raises ValueError for another dtype or rank, and for codes that do not fit.
    """
    per, size, word = _unit(bits)
    if codes.dtype != torch.uint8 or codes.ndim != 2:
        raise ValueError(f"codes must be uint8 [rows, n], got {codes.dtype} {list(codes.shape)}")
    if codes.numel() and int(codes.max()) >= 1 << bits:
        raise ValueError(f"codes up to {int(codes.max())} do not fit in {bits} bits; the largest is {(1 << bits) - 1}")
    rows, n = codes.shape
    units = -(-n // per)
    spread = F.pad(codes, (0, units * per - n)).reshape(rows, units, per)
    words = spread[..., 0].to(word)
    for i in range(1, per):
        words |= spread[..., i].to(word) << (bits * i)
    packed = torch.empty(rows, units, size, dtype=torch.uint8, device=codes.device)
    for j in range(size):
        packed[..., j] = (words >> (8 * j)) & 0xFF
    return packed.view(rows, units * size)[:, : packed_width(n, bits)].contiguous()


def unpack(packed: Tensor, bits: int, n: int) -> Tensor:
    """The inverse of `pack`: uint8 [rows, ceil(n * bits / 8)] -> uint8 [rows, n].

    Raises ValueError for another dtype or rank, and for a width that n codes do not have.
    """
    per, size, word = _unit(bits)
    if packed.dtype != torch.uint8 or packed.ndim != 2:
        raise ValueError(f"packed must be uint8 [rows, bytes], got {packed.dtype} {list(packed.shape)}")
    if packed.shape[1] != packed_width(n, bits):
        raise ValueError(f"{n} codes of {bits} bits take {packed_width(n, bits)} bytes a row, packed has {packed.shape[1]}")
    rows, width = packed.shape
    units = -(-n // per)
    spread = F.pad(packed, (0, units * size - width)).reshape(rows, units, size)
    words = spread[..., 0].to(word)
    for j in range(1, size):
        words |= spread[..., j].to(word) << (8 * j)
    codes = torch.empty(rows, units, per, dtype=torch.uint8, device=packed.device)
    for i in range(per):
        codes[..., i] = (words >> (bits * i)) & ((1 << bits) - 1)
    return codes.view(rows, units * per)[:, :n].contiguous()


def _unit(bits: int) -> tuple[int, int, torch.dtype]:
    """The shortest run that is whole in both codes and bytes: (codes, bytes, a word type that holds it unsigned)."""
    if not 1 <= bits <= 8:
        raise ValueError(f"bits must be 1 to 8, got {bits}")
    per, size = 8 // gcd(8, bits), bits // gcd(8, bits)
    return per, size, torch.uint8 if size == 1 else torch.int32 if size <= 3 else torch.int64

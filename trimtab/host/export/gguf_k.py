"""Rounding to Q4_K, the block format of GGUF with two levels of scales, which the `gguf` package can read and not write.

256 consecutive inputs are eight groups of 32, each value (d * s) * q - (dmin * m): q of 4 bits, s and m of 6 bits a group, d and
dmin float16 for all eight. Every group's grid spans its own range, with zero always inside; no search for a better grid is made.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SUPER, GROUP = 256, 32
CODES, LEVELS = 15, 63  # the largest of 4 and of 6 bits


def q4_k(values: Tensor) -> NDArray[np.uint8]:
    """values: float32 [out, in], in whole blocks of 256. uint8 [out, bytes]."""
    groups = values.float().reshape(len(values), -1, SUPER // GROUP, GROUP)  # [out, blocks, 8, 32]
    depth = -groups.amin(-1).clamp_max(0)  # how far below zero a group reaches
    step = (groups.amax(-1).clamp_min(0) + depth) / CODES
    d, dmin = ((most.amax(-1, keepdim=True) / LEVELS).half() for most in (step, depth))
    s, m = (_share(each, of.float()) for each, of in ((step, d), (depth, dmin)))
    unit = (d.float() * s).unsqueeze(-1)
    codes = ((groups + (dmin.float() * m).unsqueeze(-1)) / torch.where(unit > 0, unit, 1)).round().clamp(0, CODES)
    parts = [_halves(d), _halves(dmin), _sixes(_bytes(s), _bytes(m)), _nibbles(_bytes(codes))]
    return np.concatenate(parts, axis=-1).reshape(len(values), -1)


def _share(each: Tensor, of: Tensor) -> Tensor:
    """Whole multiples of `of`, 0 where it is 0."""
    return torch.where(of > 0, each / torch.where(of > 0, of, 1), 0).round().clamp(0, LEVELS)


def _bytes(numbers: Tensor) -> NDArray[np.uint8]:
    held: NDArray[np.uint8] = numbers.to(torch.uint8).numpy()
    return held


def _halves(numbers: Tensor) -> NDArray[np.uint8]:
    """float16 [out, blocks, 1] -> uint8 [out, blocks, 2], little-endian."""
    return numbers.contiguous().numpy().astype("<f2").view(np.uint8)


def _sixes(s: NDArray[np.uint8], m: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """s, m [..., 8] of 6 bits -> [..., 12]: the first four of each whole, in whose two upper bits those of the last four lie."""
    upper = [first[..., :4] | (first[..., 4:] >> 4) << 6 for first in (s, m)]
    return np.concatenate([*upper, (s[..., 4:] & 15) | (m[..., 4:] & 15) << 4], axis=-1)


def _nibbles(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[..., 8, 32] of 4 bits -> [..., 128]: groups in pairs, the first of a pair in the lower halves."""
    return (codes[..., 0::2, :] | codes[..., 1::2, :] << 4).reshape(*codes.shape[:-2], SUPER // 2)

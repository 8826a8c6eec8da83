"""Packed rows in 32-bit words, as other programs store them: the same stream of bits, cut every four bytes.

A row that does not fill its last word is filled up with zeros.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from trimtab.tensors.packing import pack, packed_width, unpack

BYTES = 4  # of a word


def word_count(n: int, bits: int) -> int:
    """Words that n codes of `bits` bits take."""
    return -(-packed_width(n, bits) // BYTES)


def as_words(packed: Tensor) -> Tensor:
    """uint8 [rows, bytes] -> int32 [rows, words]."""
    return F.pad(packed, (0, -packed.shape[1] % BYTES)).contiguous().view(torch.int32)


def pack_words(codes: Tensor, bits: int) -> Tensor:
    """codes uint8 [rows, n], each below 2**bits -> int32 [rows, words]. Raises ValueError for codes that do not fit."""
    return as_words(pack(codes, bits))


def unpack_words(words: Tensor, bits: int, n: int) -> Tensor:
    """The inverse of `pack_words`: int32 [rows, words] -> uint8 [rows, n]. Raises ValueError for another dtype or width."""
    if words.dtype != torch.int32 or words.ndim != 2 or words.shape[1] != word_count(n, bits):
        wanted = f"int32 [rows, {word_count(n, bits)}]"
        raise ValueError(f"{n} codes of {bits} bits are {wanted}, got {words.dtype} {list(words.shape)}")
    return unpack(words.contiguous().view(torch.uint8)[:, : packed_width(n, bits)].contiguous(), bits, n)

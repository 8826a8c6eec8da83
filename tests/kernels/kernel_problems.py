"""Random packed weights, and how far from `dense()` a product may be."""

from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.core.kinds import LinearWeight
from trimtab.formats import NM, BitPlanes, Codebook, Dense, Grouped, Masked

# Multiples of nothing: rows of tiles, columns of granules, blocks and groups all end in the middle somewhere.
# (out, in, group_size)
SHAPES = [
    (1, 1, 1),
    (17, 33, 33),
    (5, 96, 48),
    (33, 130, 65),
    (16, 64, 64),
    (40, 264, 8),
    (3, 700, 700),
    (31, 224, 32),
    (50, 576, 64),
]
WORDS = ["grouped2", "grouped3", "grouped4", "grouped5", "grouped6", "grouped7", "grouped8"]
PLANES = ["planes1", "planes2", "planes3", "planes4", "planes8"]
PLAIN = ["float32", "float16", "bfloat16"]
SPARSE = ["masked_float32", "masked_float16", "masked_bfloat16", "nm_float16", "nm_bfloat16"]
BOOKS = ["palette4", "palette8", "palettes", "runs", "sums"]  # single numbers of few or many entries, added up; runs of them
KINDS = [*WORDS, *PLANES, *PLAIN, *SPARSE, *BOOKS]
MOST = {"int8": 127, "int16": 16319}
BLOCK = 64


@dataclass(frozen=True)
class Problem:
    """sizes [out, in]: of the terms that a kernel adds up for each weight; they cancel, their rounding does not."""

    weight: LinearWeight
    sizes: Tensor
    group_size: int

    def allowed(self, x: Tensor, activations: str) -> Tensor:
        """[tokens, out]: how much rounding of activations and float32 sums may change x W^T."""
        x, dense = x.double().abs(), self.weight.dense().double().abs()
        sums = 1e-6 * (x @ self.sizes.T)
        if activations not in MOST or not isinstance(self.weight, Grouped | BitPlanes):
            return sums + 1e-30
        largest = x.view(len(x), -1, self.group_size).clone()
        for begin in range(0, self.group_size, BLOCK):
            part = largest[..., begin : begin + BLOCK]
            part[:] = part.amax(-1, keepdim=True)
        largest = largest.view_as(x)
        return largest @ (dense * (0.5001 / MOST[activations]) + 1e-6 * self.sizes).T + 1e-30


def problem(kind: str, out: int, in_: int, group_size: int, seed: int = 0, zero: bool = True) -> Problem:
    draw = torch.Generator().manual_seed(seed)
    groups = in_ // group_size
    if kind in PLAIN:
        dense = Dense(torch.randn(out, in_, generator=draw).to(getattr(torch, kind)))
        return Problem(dense, dense.dense().double().abs(), group_size)
    if kind in SPARSE:
        return sparse(kind, out, in_, group_size, draw)
    if kind in BOOKS:
        return codebook(kind, out, in_, group_size, draw, scaled=zero)
    count = int(kind.lstrip("groupedlans"))
    codes = torch.randint(0, 2**count, (out, in_), dtype=torch.uint8, generator=draw)
    if kind.startswith("grouped"):
        scale = torch.randn(out, groups, generator=draw).half()
        zeros = torch.randint(0, 2**count, (out, groups), dtype=torch.uint8, generator=draw) if zero else None
        centre = zeros.double() if zeros is not None else torch.full((out, groups), 2.0 ** (count - 1)).double()
        sizes = (codes.view(out, groups, -1) + centre[..., None]) * scale.double().abs()[..., None]
        return Problem(Grouped(codes, scale, zeros, count, group_size), sizes.view(out, in_), group_size)
    scale, offset = torch.randn(out, groups, count, generator=draw).half(), torch.randn(out, groups, generator=draw).half()
    sizes = (offset.double().abs() + scale.double().abs().sum(-1)).repeat_interleave(group_size, 1)
    return Problem(BitPlanes(codes, scale, offset, group_size), sizes, group_size)


def divisor(number: int, most: int) -> int:
    return next(n for n in range(most, 0, -1) if number % n == 0)


def sparse(kind: str, out: int, in_: int, group_size: int, draw: torch.Generator) -> Problem:
    """Half of the weights survive; a row in three is empty, and one in three full where the format allows it."""
    form, dtype = kind.split("_")
    dense = torch.randn(out, in_, generator=draw).to(getattr(torch, dtype))
    ranks = torch.rand(out, in_, generator=draw)
    m = divisor(in_, 8)
    if form == "nm" and m > 1:
        n = max(m // 2, 1)
        keep = ranks.view(out, -1, m).argsort(-1).argsort(-1).lt(n).view(out, in_)
        weight: LinearWeight = NM.of(dense, keep, n, m)
    else:
        weight = Masked(dense, ranks < (torch.arange(out) % 3 / 2)[:, None])
    return Problem(weight, weight.dense().double().abs(), group_size)


def codebook(kind: str, out: int, in_: int, group_size: int, draw: torch.Generator, scaled: bool) -> Problem:
    books, entries, most = {
        "palette4": (1, 16, 1),
        "palette8": (1, 200, 1),
        "palettes": (3, 11, 1),
        "runs": (1, 256, 700),
        "sums": (2, 37, 8),
    }[kind]
    dim = divisor(in_, most)
    codes = torch.randint(0, entries, (books, out, in_ // dim), dtype=torch.uint8, generator=draw)
    book = torch.randn(books, entries, dim, generator=draw).half()
    scale = torch.randn(out, in_ // group_size, generator=draw).half() if scaled else None
    weight = Codebook(codes, book, scale, group_size if scaled else None)
    sizes = Codebook(codes, book.abs(), None if scale is None else scale.abs(), weight.group_size).dense().double()
    return Problem(weight, sizes, group_size)


def activations_like(tokens: int, in_: int, seed: int = 0) -> Tensor:
    """[tokens, in], some of them a hundred times larger than the others, as models have them."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, in_, generator=draw)
    return x * torch.where(torch.rand(tokens, in_, generator=draw) < 0.02, 100.0, 1.0)


def truth(x: Tensor, weight: LinearWeight) -> Tensor:
    """x W^T in float64."""
    return x.double() @ weight.dense().double().T

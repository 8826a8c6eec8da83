"""One example of every format and of the ways they nest, for tests that must hold for all of them."""

from math import gcd

import torch
from torch import Tensor

from trimtab.core.kinds import LinearWeight
from trimtab.formats import (
    NM,
    Activations,
    BitPlanes,
    BlockDiagonal,
    Butterfly,
    Chain,
    Codebook,
    Dense,
    Grouped,
    Kronecker,
    Lattice,
    Masked,
    Mpo,
    Permutation,
    Pyramid,
    Reassembly,
    Rotated,
    Rotation,
    SignPlanes,
    SignStack,
    Sum,
    low_rank,
)
from trimtab.tensors.butterfly import size_for, stacks_for
from trimtab.tensors.hadamard import largest_block
from trimtab.tensors.kronecker import even_split
from trimtab.tensors.mpo import axes, bonds


def examples(out: int, in_: int, generator: torch.Generator) -> list[LinearWeight]:
    """Random weights [out, in], out >= 1, in >= 2: every kind of `trimtab.formats`, several dtypes and widths, nested ones.

    Where a format wants groups, a divisor of `in_` is taken, so odd shapes such as 17 x 33 work too; lattices only where 8
    divides `in_`, rotations only as the outer factor of a chain. The first row of the
    plain, sparse and integer ones is zero.
    """
    return [
        *(Dense(_matrix(out, in_, generator).to(d)) for d in (torch.float32, torch.float16, torch.bfloat16)),
        *(masked(out, in_, generator, d) for d in (torch.float32, torch.bfloat16)),
        nm(out, in_, generator),
        *(grouped(out, in_, bits, generator) for bits in (2, 3, 4, 8)),
        grouped(out, in_, 4, generator, symmetric=False),
        grouped(out, in_, 3, generator, symmetric=False),
        *(bitplanes(out, in_, count, generator) for count in (1, 2, 3)),
        signplanes(out, in_, 1, generator, rows=min(out, 7), columns=1),
        signplanes(out, in_, 3, generator, rows=min(out, 3), columns=min(in_, 8)),
        signplanes(out, in_, 2, generator, rows=1, columns=in_, shifts=True),
        *(signstack(out, in_, blocks, rank, generator) for blocks, rank in ((1, 1), (3, min(out, in_, 2)))),
        codebook(out, in_, generator, books=1, entries=16, dim=1),
        codebook(out, in_, generator, books=2, entries=13, dim=_divisor(in_, 8), scaled=True),
        *(pyramid(out, in_, pulses, radius_bits, generator) for pulses, radius_bits in ((1, 1), (5, 3), (40, 8))),
        blocks(out, in_, generator),
        *(mpo(out, in_, sites, bond, generator) for sites, bond in ((1, 1), (2, 3), (3, 2))),
        *(butterfly(out, in_, generator, dtype) for dtype in (torch.float16, torch.float32)),
        _thin(out, in_, generator),
        Chain((blocks(out, out, generator), nm(out, in_, generator), blocks(in_, in_, generator, torch.bfloat16))),
        Chain((Dense(_matrix(out, in_, generator)), grouped(in_, in_, 4, generator))),
        Sum((grouped(out, in_, 3, generator), _thin(out, in_, generator))),
        rotated(grouped(out, in_, 3, generator), generator),
        Rotated(Dense(_matrix(out, in_, generator)), largest_block(in_)),
        Sum((rotated(Sum((nm(out, in_, generator), masked(out, in_, generator))), generator), _thin(out, in_, generator))),
        *(lattice(out, in_, bits, generator) for bits in (1, 2) if in_ % 8 == 0),
        Chain((rotation(out, generator), rotated(grouped(out, in_, 4, generator), generator))),
    ]


def masked(out: int, in_: int, generator: torch.Generator, dtype: torch.dtype = torch.float16) -> Masked:
    """Half of the weights survive, at random."""
    keep = torch.rand(out, in_, generator=generator) < 0.5
    return Masked(_matrix(out, in_, generator).to(dtype), keep)


def nm(out: int, in_: int, generator: torch.Generator) -> NM:
    """About half of every group survives; groups are a divisor of in_ of at most 4, or all of a prime in_."""
    m = _divisor(in_, 4) if _divisor(in_, 4) > 1 else min(in_, 256)
    n = max(m // 2, 1)
    ranks = torch.rand(out, in_ // m, m, generator=generator).argsort(-1)
    return NM.of(_matrix(out, in_, generator).to(torch.float16), (ranks < n).view(out, in_), n, m)


def grouped(out: int, in_: int, bits: int, generator: torch.Generator, symmetric: bool = True) -> Grouped:
    """Random codes, scales and zero points; groups are the largest divisor of in_ up to 16."""
    size = _divisor(in_, 16)
    codes = _codes((out, in_), 2**bits, generator)
    scale = torch.rand(out, in_ // size, generator=generator).half()
    zero = None if symmetric else _codes((out, in_ // size), 2**bits, generator)
    codes[0] = 2 ** (bits - 1) if zero is None else zero[0].repeat_interleave(size)
    return Grouped(codes, scale, zero, bits, size)


def bitplanes(out: int, in_: int, count: int, generator: torch.Generator) -> BitPlanes:
    """Random planes, scales and offsets."""
    size = _divisor(in_, 16)
    scale = torch.rand(out, in_ // size, count, generator=generator).half()
    offset = torch.randn(out, in_ // size, generator=generator).half()
    return BitPlanes(_codes((out, in_), 2**count, generator), scale, offset, size)


def signplanes(
    out: int, in_: int, count: int, generator: torch.Generator, rows: int, columns: int, shifts: bool = False
) -> SignPlanes:
    """Random signs and scales, or shifts between 1/64 and 8; blocks at the edges may be smaller."""
    blocks = -(-out // rows), -(-in_ // columns), count
    scale = torch.randn(blocks, generator=generator).half()
    if shifts:
        scale = torch.randint(-6, 4, blocks, dtype=torch.int8, generator=generator)
    return SignPlanes(_codes((out, in_), 2**count, generator), scale, rows, columns)


def signstack(out: int, in_: int, blocks: int, rank: int, generator: torch.Generator) -> SignStack:
    """Random signs and factors, each block half as large as the one before."""
    negative = torch.rand(blocks, out, in_, generator=generator) < 0.5
    halved = 0.5 ** torch.arange(blocks)
    left = torch.randn(blocks, out, rank, generator=generator) * halved[:, None, None]
    right = torch.randn(blocks, rank, in_, generator=generator)
    return SignStack(negative, left.half(), right.half(), halved)


def codebook(
    out: int, in_: int, generator: torch.Generator, books: int, entries: int, dim: int, scaled: bool = False
) -> Codebook:
    """Random entries and codes."""
    codes = _codes((books, out, in_ // dim), entries, generator)
    book = torch.randn(books, entries, dim, generator=generator).half()
    if not scaled:
        return Codebook(codes, book)
    size = _divisor(in_, 16)
    return Codebook(codes, book, torch.rand(out, in_ // size, generator=generator).half(), size)


def pyramid(out: int, in_: int, pulses: int, radius_bits: int, generator: torch.Generator) -> Pyramid:
    """Random points, lengths and scales."""
    size = _divisor(in_, 16)
    places = torch.randint(0, size, (out, in_ // size, pulses), generator=generator)
    counts = torch.nn.functional.one_hot(places, size).sum(2)
    signs = 1 - 2 * torch.randint(0, 2, counts.shape, generator=generator)
    codes = _codes((out, in_ // size), 2**radius_bits, generator)
    radii = torch.rand(2**radius_bits, generator=generator).half()
    scale = torch.randn(out, generator=generator).half()
    return Pyramid((counts * signs).to(torch.int16).view(out, in_), codes, radii, scale, size)


def blocks(out: int, in_: int, generator: torch.Generator, dtype: torch.dtype = torch.float16) -> BlockDiagonal:
    """Random blocks, as many as fit up to 8."""
    count = _divisor(gcd(out, in_), 8)
    return BlockDiagonal(torch.randn(count, out // count, in_ // count, generator=generator).to(dtype))


def mpo(out: int, in_: int, sites: int, bond: int, generator: torch.Generator) -> Mpo:
    """Random cores, bonds up to `bond`."""
    rows, columns = axes((out, in_), sites)
    of = bonds(rows, columns, bond)
    sizes = zip(of[:-1], rows, columns, of[1:], strict=True)
    return Mpo(tuple(torch.randn(size, generator=generator).half() for size in sizes))


def butterfly(out: int, in_: int, generator: torch.Generator, dtype: torch.dtype) -> Butterfly:
    """Random factors that keep the size of what passes through."""
    n = size_for(in_)
    twiddle = torch.randn(stacks_for((out, in_)), n.bit_length() - 1, n // 2, 2, 2, generator=generator) / 2**0.5
    return Butterfly.of(twiddle.to(dtype), (out, in_))


def lattice(out: int, in_: int, bits: int, generator: torch.Generator) -> Lattice:
    """Random codes."""
    codes = torch.randint(0, 256**bits, (out, in_ // 8), generator=generator)
    return Lattice(codes, torch.rand(1, generator=generator).half(), bits)


def kronecker(out: int, in_: int, generator: torch.Generator, scaled: bool = False) -> Kronecker:
    """Random factors, the first one as large as the smaller of two factors of either width that are about equal."""
    rows, columns = even_split(out)[0], even_split(in_)[0]
    right = torch.randn(out // rows, in_ // columns, generator=generator)
    scale = torch.rand(in_, generator=generator).half() if scaled else None
    return Kronecker(torch.randn(rows, columns, generator=generator).half(), right.half(), scale)


def rotation(width: int, generator: torch.Generator) -> Rotation:
    """Random signs, the largest block that fits."""
    return Rotation(torch.randint(0, 2, (width,), generator=generator) * 2 - 1, largest_block(width))


def uncompiled(out: int, in_: int, generator: torch.Generator) -> list[LinearWeight]:
    """What the native runtime does not cover: Kronecker products, other orders, and what rounds its inputs."""
    order = Permutation(torch.randperm(in_, generator=generator))
    groups = Activations(grouped(out, in_, 4, generator), 4, _divisor(in_, 16), 0.9)
    return [
        kronecker(out, in_, generator, scaled=True),
        Activations(Dense(_matrix(out, in_, generator)), 8, in_),
        Activations(grouped(out, in_, 4, generator), 8, _divisor(in_, 16), floating=True),
        rotated(groups, generator),
        Chain((groups, kronecker(in_, in_, generator))),
        order,
        reassembly(in_),
        Chain((Activations(grouped(out, in_, 3, generator), 3, in_, loud=1), order)),
        Chain((Activations(grouped(out, in_, 4, generator), 4, in_), reassembly(in_))),
    ]


def reassembly(width: int) -> Reassembly:
    """The first channel is split in two, the last two are one."""
    order = torch.arange(width)
    return Reassembly(torch.cat([order[:1], order]), torch.cat([order[-1:], order[:-1], order[-2:-1]]))


def rotated(inner: LinearWeight, generator: torch.Generator) -> Rotated:
    """Random signs, the largest block that fits."""
    signs = torch.randint(0, 2, (inner.shape[1],), generator=generator) * 2 - 1
    return Rotated(inner, largest_block(inner.shape[1]), signs)


def _thin(out: int, in_: int, generator: torch.Generator) -> Chain:
    return low_rank(torch.randn(out, 2, generator=generator), torch.randn(2, in_, generator=generator))


def _matrix(out: int, in_: int, generator: torch.Generator) -> Tensor:
    matrix = torch.randn(out, in_, generator=generator)
    matrix[0] = 0
    return matrix


def _codes(size: tuple[int, ...], count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(0, count, size, dtype=torch.uint8, generator=generator)


def _divisor(width: int, most: int) -> int:
    return next(d for d in range(min(width, most), 0, -1) if width % d == 0)

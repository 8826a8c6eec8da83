"""The books of E8: all their points lie where they should, and the nearest one is found."""

import pytest
import torch
from torch import Tensor

from trimtab.tensors.lattice import FULL, nearest, points

LARGE = points(torch.arange(2**16), 2)
SMALL = points(torch.arange(2**8), 1)


def in_lattice(vectors: Tensor) -> Tensor:
    """[n]: whole or half-odd in all coordinates, with an even sum."""
    doubled = 2 * vectors
    odd = (doubled % 2 != 0).sum(1)
    return (doubled == doubled.round()).all(1) & ((odd == 0) | (odd == 8)) & (vectors.sum(1) % 2 == 0)


@pytest.mark.parametrize("book", [LARGE - 0.25, SMALL])
def test_every_point_is_one_of_the_lattice_and_no_two_are_the_same(book: Tensor) -> None:
    assert bool(in_lattice(book).all())
    assert len(book.unique(dim=0)) == len(book)


def test_the_small_book_has_the_origin_and_all_shortest_vectors() -> None:
    lengths = SMALL.square().sum(1)
    assert [int((lengths == n).sum()) for n in (0, 2, 4)] == [1, 240, 15]
    assert float(SMALL[0].abs().max()) == 0


@pytest.mark.parametrize("shift", [-0.25, 0.25])
def test_the_large_book_has_all_that_is_near_the_shift(shift: float) -> None:
    """Of D8 + 1/2 within the full length 227 magnitudes with 2^7 signs each, and 29 longer ones."""
    half = LARGE - shift
    half = half[(half % 1 == 0.5).all(1) & (half.sum(1) % 2 == 0)]
    lengths = half.square().sum(1)
    assert int((lengths <= FULL).sum()) == 227 * 128
    assert int((lengths == 12).sum()) == 29 * 128
    assert len(half) == 256 * 128


@pytest.mark.parametrize("spread", [0.3, 1.0, 2.5])
@pytest.mark.parametrize(("bits", "book"), [(1, SMALL), (2, LARGE)])
def test_nearest_is_the_nearest_of_all(bits: int, book: Tensor, spread: float) -> None:
    vectors = spread * torch.randn(600, 8, generator=torch.Generator().manual_seed(bits))
    codes = nearest(vectors, bits)
    found = (vectors - points(codes, bits)).square().sum(1)
    least = torch.cat([torch.cdist(some.double(), book.double()).square().amin(1) for some in vectors.split(200)])
    assert torch.allclose(found.double(), least, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("bits", "book"), [(1, SMALL), (2, LARGE)])
def test_points_come_back_as_their_codes(bits: int, book: Tensor) -> None:
    codes = torch.arange(0, len(book), 7)
    assert torch.equal(nearest(book[codes], bits), codes)


def test_at_two_bits_below_the_best_scalar_quantizer() -> None:
    """Of normal numbers; Lloyd and Max have 0.1175 with four free levels."""
    vectors = 1.03 * torch.randn(8000, 8, generator=torch.Generator().manual_seed(0))
    error = (vectors - points(nearest(vectors, 2), 2)).square().mean() / 1.03**2
    assert 0.088 < float(error) < 0.095

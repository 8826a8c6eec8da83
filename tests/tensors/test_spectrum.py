"""Spectra against the full decomposition, and distances between predictions against their definition."""

import pytest
import torch

from trimtab.tensors.divergence import kl, spread_positions
from trimtab.tensors.spectrum import effective_rank, largest_singular_value, singular_values, stable_rank


def draw() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("shape", [(17, 33), (33, 17), (1, 5), (8, 8)])
def test_singular_values(shape):
    matrix = torch.randn(shape, generator=draw())
    exact = torch.linalg.svdvals(matrix.double())
    assert torch.allclose(singular_values(matrix), exact, rtol=1e-9)
    assert largest_singular_value(matrix, 1000, draw()) == pytest.approx(float(exact[0]), rel=1e-9)
    assert largest_singular_value(matrix, 3, draw()) <= float(exact[0]) * (1 + 1e-12)


def test_twenty_iterations_do_where_the_spectrum_falls():
    u, _ = torch.linalg.qr(torch.randn(40, 40, generator=draw(), dtype=torch.float64))
    matrix = u * 0.7 ** torch.arange(40)
    assert largest_singular_value(matrix, 20, draw()) == pytest.approx(1, rel=1e-9)


def test_ranks():
    assert effective_rank(torch.ones(7)) == pytest.approx(7)
    assert effective_rank(torch.tensor([3.0, 0.0, 0.0])) == pytest.approx(1)
    assert stable_rank(2 * torch.eye(5), 2.0) == pytest.approx(5)
    zero = torch.zeros(3, 4)
    assert largest_singular_value(zero, 20, draw()) == effective_rank(singular_values(zero)) == stable_rank(zero, 0.0) == 0


def test_divergence():
    one, other = torch.randn(2, 6, 11, generator=draw())
    p, q = one.double().softmax(-1), other.double().softmax(-1)
    assert torch.allclose(kl(one, other), (p * (p / q).log()).sum(-1))
    assert kl(one, one + 3).max() < 1e-12  # logits have no origin
    assert kl(one, one).max() == 0


def test_positions_are_spread_and_leave_out_the_first():
    assert spread_positions(10, 100).tolist() == list(range(1, 10))
    assert spread_positions(101, 5).tolist() == [1, 26, 50, 75, 100]
    assert spread_positions(10, 1).tolist() == [1]

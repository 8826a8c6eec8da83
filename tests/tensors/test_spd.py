"""The factor is the factor of the inverse, and the failure policy is the one that is stated."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trimtab.tensors.spd import cholesky, damped, inverse_upper


def gram(n: int, tokens: int, seed: int = 0) -> Tensor:
    x = torch.randn(tokens, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x.T @ x / tokens


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 40), tokens=st.integers(1, 60), damping=st.floats(1e-4, 1), seed=st.integers(0, 1000))
def test_upper_factor_of_the_inverse(n: int, tokens: int, damping: float, seed: int) -> None:
    matrix = gram(n, tokens, seed)
    upper, used = inverse_upper(matrix, damping)
    assert used == damping
    assert upper.dtype == torch.float64
    assert torch.equal(upper, upper.triu())
    assert (upper.diagonal() > 0).all()
    product = upper.T @ upper @ damped(matrix, damping)
    assert torch.allclose(product, torch.eye(n, dtype=torch.float64), atol=1e-8)


def test_damping_is_a_fraction_of_the_mean_diagonal() -> None:
    matrix = gram(8, 50)
    added = damped(matrix, 0.25) - matrix
    assert torch.allclose(added, torch.eye(8, dtype=torch.float64) * 0.25 * matrix.diagonal().mean(), atol=1e-15)
    assert torch.allclose(damped(matrix * 1e6, 0.25), damped(matrix, 0.25) * 1e6, rtol=1e-12)


def test_lower_factor_and_no_damping_where_none_is_needed() -> None:
    matrix = gram(8, 50)
    factor, used = cholesky(matrix, 0.0)
    assert used == 0.0
    assert torch.allclose(factor @ factor.T, matrix, atol=1e-12)


@pytest.mark.parametrize(("least", "used"), [(-5e-3, 1e-2), (-5e-2, 1e-1), (-0.5, 1.0)])
def test_damping_is_raised_tenfold_and_said(least: float, used: float) -> None:
    values = torch.ones(10, dtype=torch.float64)
    values[0], values[1] = least, 2 - least  # mean one
    factor, raised = cholesky(torch.diag(values), 1e-3)
    assert raised == pytest.approx(used)
    assert torch.allclose(factor @ factor.T, damped(torch.diag(values), raised))


def test_a_singular_gram_without_damping_is_damped_after_all() -> None:
    """Also one of few float32 tokens, whose rounding error makes it slightly indefinite."""
    x = torch.randn(4, 128, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 9, 128)
    for matrix in (torch.ones(4, 4), x.T @ x / 4):
        factor, used = cholesky(matrix, 0.0)
        assert 0 < used <= 1e-4
        assert factor.isfinite().all()


@pytest.mark.parametrize("factorize", [cholesky, inverse_upper])
@pytest.mark.parametrize(
    ("matrix", "reason"),
    [
        (torch.diag(torch.tensor([-50.0, 1.0, 60.0])), "indefinite"),
        (torch.zeros(3, 3), "zero"),
        (torch.full((3, 3), float("nan")), "not finite"),
        (torch.diag(torch.tensor([1.0, float("inf")])), "not finite"),
    ],
)
def test_what_determines_nothing_is_an_error(factorize, matrix: Tensor, reason: str) -> None:
    with pytest.raises(ArithmeticError, match=reason):
        factorize(matrix, 0.01)

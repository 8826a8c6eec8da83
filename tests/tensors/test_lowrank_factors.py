"""Nothing of that rank is better (Eckart and Young), in the metric that was asked for."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trimtab.tensors.lowrank import rank_for, truncated
from trimtab.tensors.spd import cholesky


def normal(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def roots(inputs: int) -> dict[str, Tensor | None]:
    x = normal(3 * inputs, inputs, seed=5) @ normal(inputs, inputs, seed=6)
    return {"identity": None, "diagonal": normal(inputs, seed=7).abs() + 0.1, "gram": cholesky(x.T @ x / len(x), 1e-4)[0]}


def metric(root: Tensor | None, inputs: int) -> Tensor:
    return torch.eye(inputs, dtype=torch.float64) if root is None else torch.diag(root) if root.ndim == 1 else root


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (16, 16)])
@pytest.mark.parametrize("kind", ["identity", "diagonal", "gram"])
def test_error_is_the_dropped_energy_and_the_least_possible(kind: str, shape: tuple[int, int]) -> None:
    weight, root = normal(*shape), roots(shape[1])[kind]
    turned = weight @ metric(root, shape[1])
    energy = torch.linalg.svdvals(turned).square()
    for rank in (1, 3, 8):
        factors = truncated(weight, rank, root)
        assert factors.left.shape == (shape[0], rank)
        assert factors.right.shape == (rank, shape[1])
        product = factors.left.double() @ factors.right.double()
        error = float(((weight - product) @ metric(root, shape[1])).square().sum())
        assert error == pytest.approx(factors.dropped, rel=1e-4)
        assert factors.dropped == pytest.approx(float(energy[rank:].sum()), rel=1e-9)


def test_the_metric_matters() -> None:
    """Better on the inputs than the plain truncation, and worse on the matrix."""
    weight, root = normal(16, 16), roots(16)["gram"]
    assert root is not None
    plain, aware = (truncated(weight, 4, r) for r in (None, root))

    def error(factors, measure: Tensor) -> float:
        return float(((weight - factors.left.double() @ factors.right.double()) @ measure).square().sum())

    eye = torch.eye(16, dtype=torch.float64)
    assert error(aware, root) < 0.9 * error(plain, root)
    assert error(aware, eye) > error(plain, eye)


@pytest.mark.parametrize("kind", ["identity", "diagonal", "gram"])
def test_full_rank_is_exact(kind: str) -> None:
    weight = normal(10, 14).float()
    factors = truncated(weight, 10, roots(14)[kind])
    assert torch.allclose(factors.left @ factors.right, weight, atol=1e-5)
    assert factors.dropped == 0


def test_singular_values_are_shared_evenly() -> None:
    factors = truncated(normal(12, 20), 5)
    assert torch.allclose(factors.left.norm(dim=0), factors.right.norm(dim=1), rtol=1e-5)


@settings(max_examples=100, deadline=None)
@given(out=st.integers(1, 500), inputs=st.integers(1, 500), keep=st.floats(0.01, 0.99))
def test_rank_stays_within_the_budget_and_uses_it(out: int, inputs: int, keep: float) -> None:
    rank = rank_for((out, inputs), keep)
    assert rank >= 1
    assert rank == 1 or rank * (out + inputs) <= keep * out * inputs
    assert (rank + 1) * (out + inputs) > keep * out * inputs

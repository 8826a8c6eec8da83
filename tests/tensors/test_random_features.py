"""Random features: right in the mean, closer with more of them, and exact where nothing is random."""

import pytest
import torch

from trimtab.tensors.random_features import features, polynomial, projections

INPUTS = 6


def drawn(seed: int, width: int, degree: int):
    return projections(INPUTS, width, degree, torch.Generator().manual_seed(seed))


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(7)
    x, weight = torch.randn(9, INPUTS, generator=generator), torch.randn(4, INPUTS, generator=generator)
    return x / x.norm(dim=1, keepdim=True), weight / weight.norm(dim=1, keepdim=True)


def errors(problem, coefficients, width: int, draws: int) -> torch.Tensor:
    """[draws, 9, 4]: estimates less what they estimate."""
    x, weight = problem
    exact = sum(a * (x @ weight.T) ** power for power, a in enumerate(coefficients))
    found = []
    for seed in range(draws):
        maps = drawn(seed, width, len(coefficients) - 1)
        found.append(features(x, maps) @ polynomial(weight, coefficients, maps).T - exact)
    return torch.stack(found)


@pytest.mark.parametrize("coefficients", [(0.0, 1.0), (0.5, 0.0, 1.0), (0.0, 0.0, 0.0, 1.0), (1.0, -0.5, 0.25)])
def test_it_is_right_in_the_mean(problem, coefficients):
    found = errors(problem, coefficients, width=64, draws=600)
    z = found.mean(0) / (found.std(0) / len(found) ** 0.5)
    assert float(z.abs().max()) < 4.5  # of 36 means, each of 600 draws


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_four_times_as_many_features_halve_the_error(problem, degree):
    coefficients = [0.0] * degree + [1.0]
    few, many = (errors(problem, coefficients, width, 300).square().mean().sqrt() for width in (60, 240))
    assert float(few / many) == pytest.approx(2.0, rel=0.15)


def test_with_as_many_orthogonal_rows_as_inputs_the_linear_part_is_exact(problem):
    x, weight = problem
    (rows,) = drawn(0, INPUTS + 1, 1)
    unit = [rows / rows.norm(dim=2, keepdim=True) * (INPUTS + 1) ** 0.5]
    torch.testing.assert_close(features(x, unit) @ polynomial(weight, (0.0, 1.0), unit).T, x @ weight.T, rtol=0, atol=1e-5)


def test_rows_have_the_lengths_of_gaussian_ones_and_shapes_are_as_said(problem):
    x, _ = problem
    maps = drawn(1, 500, 2)
    assert [tuple(one.shape) for one in maps] == [(1, 500, INPUTS + 1), (2, 500, INPUTS + 1)]
    assert float(maps[0].square().sum(2).mean()) == pytest.approx(INPUTS + 1, rel=0.1)
    assert features(x, maps).shape == (9, 1001)

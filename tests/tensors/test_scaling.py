"""The search for scales: its error is the one that the tokens have, and its curve goes through what is written down."""

import pytest
import torch
from torch import Tensor

from trimtab.stats import Gram
from trimtab.tensors.scaling import Rounding, output_error, power, search
from trimtab.testing.problems import layer


def gram_of(x: Tensor) -> Tensor:
    return Gram.finish(Gram.update(Gram.start((1, x.shape[1]), x.device), x))


@pytest.mark.parametrize("rounding", [Rounding(3, 32), Rounding(2, 0, symmetric=True), Rounding(4, 64, clip=True)])
def test_the_error_is_the_mean_squared_output_error_of_all_tokens(rounding: Rounding) -> None:
    problem = layer()
    scale = torch.exp(torch.randn(128, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    change = rounding.scaled(problem.weight, scale) - problem.weight
    there = (problem.x.double() @ change.double().T).square().sum(1).mean()
    assert output_error(change, gram_of(problem.x)) == pytest.approx(float(there), rel=1e-4)


def test_rounding_is_that_of_the_groups() -> None:
    weight = layer().weight
    for size in (16, 0):
        expected = torch.cat([Rounding(3, 0).nearest(part) for part in weight.split(size or 128, dim=1)], 1)
        assert torch.equal(Rounding(3, size).nearest(weight), expected)


def test_a_common_factor_changes_nothing() -> None:
    weight, scale = layer().weight, torch.rand(128, dtype=torch.float64) + 0.5
    once, eight = (Rounding(3, 32).scaled(weight, factor * scale) for factor in (1, 8))
    assert torch.allclose(once, eight, rtol=2e-3)


def test_powers_are_centred_and_silent_channels_keep_one() -> None:
    values = torch.tensor([4.0, 0.0, 1.0, 16.0], dtype=torch.float64)
    assert torch.allclose(power(values, 0.5), torch.tensor([1.0, 1.0, 0.5, 2.0], dtype=torch.float64))
    assert power(values, 0.5, centred=False).tolist() == [2, 1, 1, 4]
    assert power(values, 0.0).tolist() == [1, 1, 1, 1]
    assert power(torch.zeros(3), 0.7).tolist() == [1, 1, 1]
    tiny = power(torch.tensor([1e-30, 1.0], dtype=torch.float64), 0.95)
    assert float(tiny[1] / tiny[0]) == pytest.approx(1e4)


def test_the_search_finds_the_least_error_of_its_grid() -> None:
    problem = layer(in_=64)
    values, gram, rounding = problem.x.abs().mean(0), gram_of(problem.x), Rounding(3, 32)
    halves = [problem.weight[:10], problem.weight[10:]]

    def error(exponent: float) -> float:
        return output_error(rounding.scaled(problem.weight, power(values, exponent)) - problem.weight, gram)

    errors = {step / 20: error(step / 20) for step in range(20)}
    found = search(lambda exponent: power(values, exponent), 20, halves, [gram, gram], rounding)
    assert found.exponent == min(errors, key=errors.__getitem__) > 0
    assert torch.equal(found.scale, power(values, found.exponent))
    assert found.relative == pytest.approx(errors[found.exponent] / errors[0.0], rel=1e-5)


def test_nothing_seen_scales_nothing() -> None:
    weight = layer(in_=64).weight
    found = search(lambda exponent: power(torch.ones(64), exponent), 20, [weight], [torch.zeros(64, 64)], Rounding(3, 32))
    assert (found.exponent, found.relative) == (0.0, 1.0)

"""EasyQuant: outliers and ranges, against oracles, and what is stored, to the bit."""

import pytest
import torch
from torch import Tensor

from trimtab.core.kinds import LinearWeight
from trimtab.core.registry import get
from trimtab.core.seeds import Seeds
from trimtab.formats import NM, Grouped, Masked
from trimtab.testing.problems import Layer, layer, seen, solve


def distance(weight: Tensor, answer: LinearWeight) -> float:
    return float((weight - answer.dense()).double().square().sum())


def spiky(out: int = 24, inputs: int = 128, at: float = 12.0) -> Layer:
    """Two weights of every fourth row stand far out."""
    problem = layer(out, inputs)
    weight = problem.weight.clone()
    weight[::4, 7], weight[::4, inputs - 9] = at, -at
    return Layer(weight, problem.x)


def best_errors(groups: Tensor, bits: int) -> Tensor:
    """[..., 1]: least squared error of each group over 400 scales: the oracle of the descent."""
    centre = 2 ** (bits - 1)
    first = groups.abs().amax(-1, keepdim=True) / (centre - 1)
    least = torch.full_like(first, torch.inf)
    for part in torch.linspace(0.02, 1.1, 400):
        scale = (first * part).half().float()
        codes = (groups / scale).round().clamp(-centre, centre - 1)
        least = torch.minimum(least, (codes * scale - groups).square().sum(-1, keepdim=True))
    return least


@pytest.mark.parametrize(("bits", "most"), [(2, 1.001), (3, 1.001), (4, 1.03)])
def test_easyquant_descends_to_nearly_the_best_scale_of_every_row(bits: int, most: float) -> None:
    """With more codes the error has several valleys; now and then the descent stays in one that is not the deepest."""
    weight = layer(48, 256).weight
    answer = solve(get("easyquant")(bits=bits, threshold=1000.0), layer(48, 256))
    (uniform,) = answer.parts  # nothing stands out by a thousand deviations
    assert distance(weight, uniform) <= most * float(best_errors(weight, bits).sum())


@pytest.mark.parametrize("size", [2.0**-8, 2.0**8])
def test_easyquant_does_not_mind_the_size_of_the_weights(size: float) -> None:
    usual, other = (solve(get("easyquant")(bits=3), Layer(spiky().weight * s, spiky().x)).dense() for s in (1.0, size))
    assert torch.equal(usual * size, other)


def test_easyquant_without_steps_starts_where_the_largest_weight_says() -> None:
    weight = layer().weight
    answer = solve(get("easyquant")(bits=4, threshold=1000.0, steps=0), layer())
    torch.testing.assert_close(answer.parts[0].scale.float(), weight.abs().amax(1, keepdim=True) / 7, rtol=1e-3, atol=0)


@pytest.mark.parametrize("threshold", [2.5, 3.0])
def test_easyquant_keeps_what_stands_out_and_nothing_else(threshold: float) -> None:
    problem = spiky()
    answer = solve(get("easyquant")(threshold=threshold), problem)
    uniform, apart = answer.parts
    weight = problem.weight
    outliers = (weight - weight.mean()).abs() > threshold * weight.std(correction=0)
    assert 12 <= int(outliers.sum()) < 0.05 * weight.numel()
    assert torch.equal(apart.dense(), weight.half().float() * outliers)
    assert (uniform.dense()[outliers] == 0).all()  # not counted twice
    assert uniform.scale.max() < 1.0  # nor do they stretch the range


@pytest.mark.parametrize("bits", [3, 4])
def test_easyquant_needs_both_parts(bits: int) -> None:
    problem = spiky(48, 256)
    make = get("easyquant")
    both, outliers, ranges, neither = (
        distance(problem.weight, solve(make(bits=bits, threshold=threshold, steps=steps), problem))
        for threshold, steps in ((3.0, 100), (3.0, 0), (1000.0, 100), (1000.0, 0))
    )
    assert both < 0.95 * outliers < neither
    assert both < 0.5 * ranges
    assert ranges < neither


def test_easyquant_keeps_only_the_largest_of_every_group_if_told_so() -> None:
    weight = layer(24, 256).weight.clamp(-2, 2)
    weight[:, 7], weight[0, 3:6] = 12.0, torch.tensor([8.0, 11.0, -9.0])
    for most, kept in ((1, [7]), (2, [4, 7]), (3, [4, 5, 7]), (0, [3, 4, 5, 7])):
        apart = solve(get("easyquant")(most=most), Layer(weight, layer(24, 256).x)).parts[1]
        assert apart.dense()[0].nonzero().flatten().tolist() == kept
        assert apart.dense()[1].nonzero().flatten().tolist() == [7]
        if most:
            assert isinstance(apart, NM)
            assert (apart.n, apart.m) == (most, 256)


@pytest.mark.parametrize("crowded", [False, True])
def test_easyquant_stores_outliers_in_the_smallest_format(crowded: bool) -> None:
    """One to a row: N:M with few slots. Half a row: a bitmap, whose cost does not depend on the fullest group."""
    weight = layer(24, 128).weight.clamp(-2, 2)
    outliers = torch.zeros_like(weight, dtype=torch.bool)
    if crowded:
        outliers[3, :32] = True
    else:
        outliers[:, 5] = True
    weight[outliers] = 30.0
    answer = solve(get("easyquant")(), Layer(weight, layer(24, 128).x))
    uniform, apart = answer.parts
    assert isinstance(uniform, Grouped)
    assert isinstance(apart, Masked if crowded else NM)
    assert torch.equal(answer.dense()[outliers], weight[outliers])
    index = 24 * 128 + 16 * 32 if crowded else 24 * (16 + 8)  # a position has 7 bits, a row of them ends on a byte
    assert answer.bits == (4 * 24 * 128 + 16 * 24 + index) / weight.numel()


def test_easyquant_does_not_count_what_was_pruned() -> None:
    """Zeros would narrow the deviation, and everything that survived would stand out."""
    problem = layer(24, 128)
    keep = torch.rand(24, 128, generator=Seeds(0).at("keep")) < 0.1
    method = get("easyquant")(threshold=3.0)
    shown = seen(method, problem)
    answer = method.solve(Masked(problem.weight, keep), shown, problem.site)
    assert shown.notes["outliers"] < 0.005
    assert (answer.dense()[~keep] == 0).all()


def test_easyquant_refuses_outliers_beyond_float16() -> None:
    weight = layer().weight.clone()
    weight[0, 0] = 1e6
    with pytest.raises(ArithmeticError, match="exceeds float16"):
        solve(get("easyquant")(), Layer(weight, layer().x))


def test_easyquant_looks_at_the_weights_only() -> None:
    method, problem = get("easyquant")(), layer()
    assert method.needs == ()
    answers = [solve(method, Layer(problem.weight, x)).dense() for x in (problem.x, -3 * problem.x.flip(1))]
    assert torch.equal(*answers)

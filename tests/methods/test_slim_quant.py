"""SLiM-Quant: the best scale of a matrix, against brute force."""

import pytest
import torch
from torch import Tensor

from trimtab.core.kinds import LinearWeight
from trimtab.core.registry import get
from trimtab.formats import Masked
from trimtab.testing.problems import Layer, layer, solve


def distance(weight: Tensor, answer: LinearWeight) -> float:
    return float((weight - answer.dense()).double().square().sum())


def spiky(out: int = 24, inputs: int = 128, at: float = 12.0) -> Layer:
    """Two weights of every fourth row stand far out."""
    problem = layer(out, inputs)
    weight = problem.weight.clone()
    weight[::4, 7], weight[::4, inputs - 9] = at, -at
    return Layer(weight, problem.x)


def brute_force(weight: Tensor, bits: int) -> float:
    """The least squared error over 2000 limits, one for the whole matrix."""
    top = 2 ** (bits - 1) - 1
    errors = []
    for limit in torch.linspace(0.0005, 1, 2000) * weight.abs().max():
        scale = (limit / top).half().float()
        errors.append(float((weight - (weight / scale).round().clamp(-top, top) * scale).double().square().sum()))
    return min(errors)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("shape", ["normal", "heavy tails"])
def test_slim_quant_finds_the_best_scale_of_the_matrix(bits: int, shape: str) -> None:
    weight = layer(64, 256).weight
    if shape == "heavy tails":
        weight = weight * weight.abs()
    answer = solve(get("slim_quant")(bits=bits), Layer(weight, layer(64, 256).x))
    assert len(answer.scale.unique()) == 1
    assert distance(weight, answer) <= 1.01 * brute_force(weight, bits)


def test_slim_quant_without_clipping_reaches_the_largest_weight() -> None:
    problem = layer()
    answer = solve(get("slim_quant")(bits=4, clip=False), problem)
    assert float(answer.scale[0, 0]) == pytest.approx(float(problem.weight.abs().max()) / 7, rel=1e-3)
    assert (answer.dense() - problem.weight).abs().max() <= 0.501 * float(answer.scale[0, 0]) * (1 + 2.0**-7)


@pytest.mark.parametrize("at", [4.0, 6.0, 12.0])
@pytest.mark.parametrize("bits", [3, 4])
def test_slim_quant_gives_up_outliers_for_the_rest(bits: int, at: float) -> None:
    problem = spiky(96, 256, at)
    best, widest = (solve(get("slim_quant")(bits=bits, clip=clip), problem) for clip in (True, False))
    assert best.dense().max() < 0.9 * at
    assert distance(problem.weight, best) < 0.75 * distance(problem.weight, widest)


def test_slim_quant_uses_a_symmetric_grid_and_keeps_what_was_pruned() -> None:
    problem = layer()
    keep = problem.weight.abs() > 0.7
    answer = solve(get("slim_quant")(bits=3), Layer(problem.weight * keep, problem.x), Masked(problem.weight, keep))
    assert sorted(answer.codes.unique().tolist()) == [1, 2, 3, 4, 5, 6, 7]
    assert (answer.dense()[~keep] == 0).all()


def test_slim_quant_of_nothing_is_nothing() -> None:
    for shape in ((3, 8), (1, 1)):
        answer = solve(get("slim_quant")(), Layer(torch.zeros(shape), torch.ones(4, shape[1])))
        assert not answer.dense().any()


def test_slim_quant_stores_what_rows_with_scales_of_their_own_store() -> None:
    slim, rtn = solve(get("slim_quant")(bits=3), layer()), solve(get("rtn")(bits=3, group_size=0, symmetric=True), layer())
    assert slim.spec() == rtn.spec()
    assert slim.bits == 3 + 16 / 128


def test_slim_quant_looks_at_the_weights_only() -> None:
    method, problem = get("slim_quant")(), layer()
    assert method.needs == ()
    answers = [solve(method, Layer(problem.weight, x)).dense() for x in (problem.x, -3 * problem.x.flip(1))]
    assert torch.equal(*answers)

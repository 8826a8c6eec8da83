"""SVD, SVD-LLM and LQER: what they minimize is minimal, and what they cost is what they say."""

import pytest
import torch

from trimtab.core.registry import get
from trimtab.formats import Dense, Sum
from trimtab.testing.problems import Layer, given, layer, solve


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("method", ["svd", "svd_llm"])
def test_keep_counts_parameters(method: str, keep: float) -> None:
    answer = solve(get(method)(keep=keep), layer())
    held = sum(t.numel() for t in answer.tensors().values())
    assert held <= keep * 24 * 128
    assert held > keep * 24 * 128 - (24 + 128)


def test_svd_is_the_closest_matrix() -> None:
    problem = layer()
    answer = solve(get("svd")(keep=0.5), problem)
    rank = answer.factors[0].shape[1]
    energy = torch.linalg.svdvals(problem.weight.double()).square()
    error = (answer.dense() - problem.weight).double().square().sum()
    assert float(error) == pytest.approx(float(energy[rank:].sum()), rel=1e-4)


def test_svd_llm_is_the_closest_output() -> None:
    """Its error is the dropped energy of W L, and no truncation of the same rank that we know does better."""
    problem = layer()
    answer = solve(get("svd_llm")(keep=0.5, damping=0.0), problem)
    rank = answer.factors[0].shape[1]
    energy = torch.linalg.svdvals(problem.weight.double() @ problem.x.double().T).square()
    assert problem.error(answer) == pytest.approx(float(energy[rank:].sum() / energy.sum()), rel=1e-3)
    assert problem.error(answer) < 0.8 * problem.error(solve(get("svd")(keep=0.5), problem))


def test_lqer_of_full_rank_restores_and_of_more_rank_is_better() -> None:
    problem = layer()
    coarse = given(get("lqer")(), problem)
    errors = [problem.error(solve(get("lqer")(rank=r), problem, coarse)) for r in (1, 4, 24, 1000)]
    assert errors[0] < problem.error(coarse)
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 1e-6
    assert errors[3] == errors[2]


def test_lqer_keeps_what_it_mends() -> None:
    problem = layer()
    coarse = given(get("lqer")(), problem)
    answer = solve(get("lqer")(rank=4), problem, coarse)
    assert isinstance(answer, Sum)
    assert answer.parts[0] is coarse
    assert answer.bits == pytest.approx(coarse.bits + 16 * 4 * (24 + 128) / (24 * 128))


def test_lqer_scales_by_the_inputs() -> None:
    """Of two equal errors the one under the loud input is mended first."""
    weight, x = torch.zeros(8, 16), torch.ones(32, 16) * 0.1
    x[:, 3] = 10
    weight[0, 2], weight[1, 3] = 1.0, 1.0
    answer = solve(get("lqer")(rank=1), Layer(weight, x), Dense(torch.zeros(8, 16)))
    assert answer.dense()[1, 3] == pytest.approx(1, abs=1e-3)
    assert answer.dense()[0, 2] == pytest.approx(0, abs=1e-3)

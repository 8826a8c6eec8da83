"""Magnitude, Wanda and SparseGPT against their formulas written out."""

import pytest
import torch

from trimtab.core.registry import get
from trimtab.formats import Dense, Masked
from trimtab.stats import Gram
from trimtab.tensors.spd import damped
from trimtab.testing.problems import Layer, layer, seen, solve


def kept(weight) -> torch.Tensor:
    assert isinstance(weight, Masked)
    return weight.keep


def test_magnitude_over_the_matrix_and_inside_rows() -> None:
    problem = layer()
    size = problem.weight.abs()
    over_all = kept(solve(get("magnitude")(sparsity=0.25), problem))
    assert int((~over_all).sum()) == size.numel() // 4
    assert size[~over_all].max() <= size[over_all].min()
    in_rows = kept(solve(get("magnitude")(sparsity=0.25, per="row"), problem))
    assert ((~in_rows).sum(1) == 32).all()
    assert not torch.equal(over_all, in_rows)


def test_wanda_by_its_formula() -> None:
    problem = layer()
    score = problem.weight.abs() * problem.x.square().mean(0).sqrt()
    keep = kept(solve(get("wanda")(sparsity=0.5), problem))
    border = score.kthvalue(64, dim=1, keepdim=True).values
    assert torch.equal(keep, score > border)
    assert not torch.equal(keep, kept(solve(get("magnitude")(sparsity=0.5, per="row"), problem)))


def test_wanda_does_not_care_how_often_a_token_was_seen() -> None:
    problem = layer()
    twice = Layer(problem.weight, problem.x.repeat(2, 1))
    assert torch.equal(kept(solve(get("wanda")(), problem)), kept(solve(get("wanda")(), twice)))


@pytest.mark.parametrize("method", ["magnitude", "wanda"])
def test_survivors_are_untouched_to_the_bit(method: str) -> None:
    problem = layer()
    weight = Dense(problem.weight.bfloat16())
    answer = solve(get(method)(sparsity=0.5), problem, weight)
    assert answer.tensors()["values"].dtype == torch.bfloat16
    assert torch.equal(answer.dense(), weight.dense() * answer.keep)


@pytest.mark.parametrize("pattern", ["2:4", "1:8"])
@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_patterns_hold(method: str, pattern: str) -> None:
    n, m = map(int, pattern.split(":"))
    answer = solve(get(method)(pattern=pattern, sparsity=0.9), layer())
    assert (kept(answer).reshape(-1, m).sum(1) == n).all()


def naive_sparsegpt(weight: torch.Tensor, gram: torch.Tensor, sparsity: float, block: int) -> torch.Tensor:
    """One column at a time, the inverse recomputed by elimination instead of by a factor."""
    weight, out = weight.double().clone(), torch.zeros(weight.shape, dtype=torch.float64)
    inverse = torch.linalg.inv(damped(gram, 0.01))
    inputs = weight.shape[1]
    keep = torch.ones_like(weight, dtype=torch.bool)
    for i in range(inputs):
        if i % block == 0:
            rest, pivots = inverse.clone(), []
            for j in range(i, min(i + block, inputs)):
                pivots.append(rest[j, j].clone())
                rest = rest - rest[:, j : j + 1] @ rest[j : j + 1] / rest[j, j]
            here = slice(i, i + len(pivots))
            score = weight[:, here].square() / torch.stack(pivots)
            border = score.flatten().kthvalue(int(sparsity * score.numel())).values
            keep[:, here] = score > border
        out[:, i] = weight[:, i] * keep[:, i]
        weight -= ((weight[:, i] - out[:, i]) / inverse[i, i])[:, None] * inverse[i][None]
        inverse = inverse - inverse[:, i : i + 1] @ inverse[i : i + 1] / inverse[i, i]
    return out


@pytest.mark.parametrize("block", [8, 32])
def test_sparsegpt_is_the_optimal_brain_surgeon_of_its_columns(block: int) -> None:
    problem = layer(6, 32)
    method = get("sparsegpt")(sparsity=0.5, block=block)
    expected = naive_sparsegpt(problem.weight, seen(method, problem)[Gram], 0.5, block)
    assert torch.allclose(solve(method, problem).dense().double(), expected, atol=1e-3)


def test_compensation_pays() -> None:
    problem = layer()
    errors = [problem.error(solve(get(m)(sparsity=0.5), problem)) for m in ("sparsegpt", "wanda", "magnitude")]
    assert errors[0] < errors[1] < errors[2]


@pytest.mark.parametrize("sparsity", [0.2, 0.5, 0.8])
def test_sparsegpt_counts_what_was_pruned_before(sparsity: float) -> None:
    """It neither brings weights back nor prunes more than asked where enough is gone already."""
    problem = layer()
    before = solve(get("magnitude")(sparsity=0.5, per="row"), problem)
    after = kept(solve(get("sparsegpt")(sparsity=sparsity), problem, before))
    assert not (after & ~before.keep).any()
    assert int((~after).sum()) == max(int(sparsity * after.numel()), int((~before.keep).sum()))

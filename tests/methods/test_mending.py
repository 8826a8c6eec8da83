"""LQER, EoRA and SLiM: the term that is added is the best there is in its metric, and is worth its place."""

import pytest
import torch

from trimtab.core.registry import get
from trimtab.formats import Grouped, Sum, low_rank
from trimtab.tensors.clipping import one_scale
from trimtab.tensors.lowrank import truncated
from trimtab.testing.problems import Layer, given, layer, seen, solve


def errors(rank: int, problem: Layer) -> dict[str, float]:
    coarse = given(get("eora")(), problem)
    return {id: problem.error(solve(get(id)(rank=rank), problem, coarse)) for id in ("eora", "lqer")}


@pytest.mark.parametrize("rank", [1, 4, 16])
def test_no_term_of_its_rank_leaves_less_than_eora(rank: int) -> None:
    """Neither LQER's nor that of the weights alone; the error is the energy that was dropped."""
    problem = layer()
    coarse = given(get("eora")(), problem)
    delta = (problem.weight - coarse.dense()).double()
    u, s, vt = torch.linalg.svd(delta, full_matrices=False)
    plain = problem.error(Sum((coarse, solve_term((u[:, :rank] * s[:rank]) @ vt[:rank], rank))))
    found = errors(rank, problem)
    energy = torch.linalg.svdvals(delta @ problem.x.double().T).square()
    whole = (problem.weight.double() @ problem.x.double().T).square().sum()
    exact = solve(get("eora")(rank=rank, damping=0.0), problem, coarse)
    assert problem.error(exact) == pytest.approx(float(energy[rank:].sum() / whole), rel=0.01)
    assert found["eora"] < 0.99 * found["lqer"] < found["lqer"] < plain


def solve_term(term: torch.Tensor, rank: int):
    """A matrix of this rank as the methods store it."""
    factors = truncated(term, rank)
    return low_rank(factors.left, factors.right)


def test_eora_is_monotone_and_exact_at_full_rank() -> None:
    problem = layer()
    left = [errors(rank, problem)["eora"] for rank in (1, 2, 4, 8, 16, 24, 100)]
    assert left == sorted(left, reverse=True)
    assert left[-2] == left[-1] < 1e-6


def test_eora_mends_a_pruned_and_rounded_matrix() -> None:
    problem = layer()
    pruned = solve(get("wanda")(pattern="2:4"), problem)
    rounded = solve(get("gptq")(bits=3), problem, pruned)
    found = [problem.error(solve(get("eora")(rank=rank), problem, rounded)) for rank in (2, 8)]
    assert problem.error(rounded) > 1.1 * found[0] > 1.1 * 1.1 * found[1]


def test_eora_with_fewer_tokens_than_channels_says_its_damping() -> None:
    problem, method = layer(tokens=8), get("eora")(rank=8)
    shown = seen(method, problem)
    answer = method.solve(given(method, problem), shown, problem.site)
    assert shown.notes["damping"] >= 1e-4
    assert problem.error(answer) < 1e-3  # eight tokens span eight directions


@pytest.mark.parametrize("pattern", ["2:4", "4:8"])
@pytest.mark.parametrize("group_size", [0, 32])
def test_slim_keeps_its_pattern_and_its_bytes(pattern: str, group_size: int) -> None:
    problem, m = layer(), int(pattern[-1])
    core, term = solve(get("slim")(pattern=pattern, group_size=group_size, rank=3), problem).parts
    assert isinstance(core, Grouped)
    assert int((core.dense() != 0).reshape(-1, m).sum(1).max()) <= m // 2
    assert [f.shape for f in term.factors] == [(24, 3), (3, 128)]
    assert len(core.scale.unique()) == 1 or group_size


def test_slims_rank_is_a_tenth_unless_said() -> None:
    problem = layer(40, 128)
    assert solve(get("slim")(), problem).parts[1].factors[0].shape == (40, 4)


def test_making_the_core_anew_pays() -> None:
    """Against the same mask, quantizer and rank with the term added afterwards."""
    problem = layer()
    pruned = solve(get("wanda")(pattern="2:4"), problem)
    rounded = solve(get("slim_quant")(), problem, pruned)
    afterwards = solve(get("lqer")(rank=8), problem, rounded)
    assert problem.error(solve(get("slim")(rank=8), problem)) < 0.97 * problem.error(afterwards)


def test_slim_without_pruning_and_with_all_ranks_is_exact() -> None:
    problem = layer()
    assert problem.error(solve(get("slim")(sparsity=0.0, pattern="unstructured", rank=24), problem)) < 1e-6


def test_one_scale_leaves_zero_where_it_was() -> None:
    codes, scale = one_scale(torch.zeros(3, 4), 4)
    assert (codes == 8).all()
    assert (scale == 1).all()

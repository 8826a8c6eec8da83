"""DSnoT against its cycles written out row by row, and what the cycles are for: the mean output of every row."""

import pytest
import torch
from torch import Tensor

from trimtab.core.errors import UsageError
from trimtab.core.registry import get
from trimtab.formats import NM, Dense, Masked
from trimtab.testing.problems import Layer, layer, solve


def biased(out: int = 24, in_: int = 128) -> Layer:
    """Inputs that are not zero on average, as those of a transformer are not."""
    problem = layer(out, in_)
    return Layer(problem.weight, problem.x + torch.linspace(-2, 2, in_))


def masked(problem: Layer, sparsity: float = 0.7, pattern: str = "unstructured", method: str = "wanda") -> Masked:
    answer = solve(get(method)(sparsity=sparsity, pattern=pattern), problem)
    assert isinstance(answer, Masked)
    return answer


def refined(problem: Layer, weight: Masked | NM, **knobs) -> Masked:
    answer = solve(get("dsnot")(**{"targets": "all", **knobs}), problem, weight)
    assert isinstance(answer, Masked)
    return answer


def missing(problem: Layer, weight: Masked) -> Tensor:
    """[out] the mean output that a row has lost."""
    return ((problem.weight - weight.dense()).double() @ problem.x.double().T).mean(1)


def naive(problem: Layer, keep: Tensor, cycles: int, tolerance: float, m: int = 0) -> Tensor:
    """One row after the other, lists of indices that are walked along."""
    x = problem.x.double()
    mean, variance = x.mean(0), x.var(0, correction=0)
    after = keep.clone()
    for row, weight in enumerate(problem.weight.double()):
        c = (weight * mean).tolist()
        worth, size = (weight * mean / variance).tolist(), (weight.abs() * x.square().mean(0).sqrt()).tolist()
        pruned, kept = (~keep[row]).nonzero().flatten().tolist(), keep[row].nonzero().flatten().tolist()
        grow = {
            1: sorted((i for i in pruned if c[i] > 0), key=lambda i: -worth[i]),
            -1: sorted((i for i in pruned if c[i] < 0), key=lambda i: worth[i]),
        }
        drop = {sign: sorted((i for i in kept if c[i] * sign < 0), key=lambda i: size[i]) for sign in (1, -1)}
        error = sum(c[i] for i in pruned)
        for _ in range(cycles):
            sign = 1 if error > 0 else -1
            if abs(error) <= tolerance or not grow[sign]:
                break
            come = grow[sign].pop(0)
            beside = [i for i in kept if m and i // m == come // m and after[row, i]]
            candidates = sorted(beside, key=lambda i: size[i]) if m else drop[sign]
            if not candidates:
                break
            go = candidates.pop(0)
            changed = error + c[go] - c[come]
            if m and changed * error <= 0:
                break
            error = changed
            after[row, come], after[row, go] = True, False
    return after


@pytest.mark.parametrize("method", ["wanda", "magnitude"])
@pytest.mark.parametrize("cycles", [1, 7, 50])
def test_unstructured_as_written_out(method: str, cycles: int) -> None:
    problem = biased()
    before = masked(problem, method=method)
    after = refined(problem, before, cycles=cycles, tolerance=1e-3)
    assert torch.equal(after.keep, naive(problem, before.keep, cycles, 1e-3))
    assert torch.equal(after.keep.sum(1), before.keep.sum(1))


@pytest.mark.parametrize("pattern", ["2:4", "4:8"])
def test_inside_groups_as_written_out(pattern: str) -> None:
    problem, m = biased(), int(pattern[-1])
    before = masked(problem, pattern=pattern)
    after = refined(problem, before, pattern=pattern, cycles=50, tolerance=1e-3)
    assert not torch.equal(after.keep, before.keep)
    assert torch.equal(after.keep, naive(problem, before.keep, 50, 1e-3, m))
    assert (after.keep.view(24, -1, m).sum(-1) == m // 2).all()


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_the_mean_output_of_rows_comes_back(pattern: str) -> None:
    problem = biased()
    before = masked(problem, pattern=pattern)
    lost, left = (missing(problem, mask).abs() for mask in (before, refined(problem, before, pattern=pattern, cycles=50)))
    assert left.mean() < (0.4 if pattern == "unstructured" else 0.7) * lost.mean()


@pytest.mark.parametrize(("inputs", "published"), [(64, 1), (1024, 12)])
def test_narrow_rows_swap_fewer(inputs: int, published: int) -> None:
    """50 for each 4096, rounded down, and never none."""
    problem = biased(8, inputs)
    before = masked(problem)
    assert torch.equal(refined(problem, before).keep, refined(problem, before, cycles=published).keep)
    assert not torch.equal(refined(problem, before).keep, refined(problem, before, cycles=published + 1).keep)


def test_values_are_the_original_ones() -> None:
    problem = biased()
    answer = refined(problem, masked(problem, method="sparsegpt"))
    assert torch.equal(answer.dense(), problem.weight * answer.keep)


def test_a_container_of_groups_says_its_pattern_itself() -> None:
    problem = biased()
    before = masked(problem, pattern="2:4")
    packed = NM.of(before.dense(), before.keep, 2, 4)
    assert torch.equal(refined(problem, packed).keep, refined(problem, before, pattern="2:4").keep)


def test_a_mask_of_another_pattern_is_refused() -> None:
    problem = biased()
    with pytest.raises(UsageError, match="not 2:4"):
        refined(problem, masked(problem), pattern="2:4")


def test_what_it_does_not_aim_at_stays() -> None:
    """The problem's matrix is no part of attention."""
    problem = biased()
    before = masked(problem)
    assert torch.equal(refined(problem, before, targets="attn").keep, before.keep)
    assert not torch.equal(refined(problem, before, targets="mlp").keep, before.keep)


def test_nothing_to_exchange() -> None:
    """No mean input, no weight pruned, no sign left: the mask stays, and its sparsity."""
    problem = layer(8, 16)
    silent = Layer(problem.weight, torch.zeros(4, 16))
    before = masked(problem, 0.5)
    assert torch.equal(refined(silent, before).keep, before.keep)
    whole = Masked(problem.weight, torch.ones(8, 16, dtype=torch.bool))
    assert bool(refined(problem, whole).keep.all())
    assert not isinstance(Dense(problem.weight), get("dsnot").takes)

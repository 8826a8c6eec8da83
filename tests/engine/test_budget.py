"""All units compete, the cheapest in score go first, and nothing dies out."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.engine.budget import keep_within


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 50)), min_size=1, max_size=5),
    sparsity=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_budget_is_met_to_half_a_unit_and_every_coupling_survives(sizes, sparsity, seed) -> None:
    draw = torch.Generator().manual_seed(seed)
    scores = [torch.randn(n, generator=draw) for n, _ in sizes]
    costs = [c for _, c in sizes]
    keeps = keep_within(scores, costs, sparsity)
    total = sum(n * c for n, c in sizes)
    gone = sum(int((~k).sum()) * c for k, c in zip(keeps, costs, strict=True))
    most = sum((n - 1) * c for n, c in sizes)
    assert gone <= sparsity * total + max(costs) / 2
    assert gone >= min(sparsity * total, most) - max(costs) / 2
    for keep, score in zip(keeps, scores, strict=True):
        assert keep[score.argmax()]
    kept = [s for k, v in zip(keeps, scores, strict=True) for s in v[k].tolist()]
    dropped = [s for k, v in zip(keeps, scores, strict=True) for s in v[~k].tolist()]
    best = [float(v.max()) for v in scores]
    assert not dropped or max(dropped) <= min([s for s in kept if s not in best], default=float("inf"))


def test_nothing_goes_at_zero() -> None:
    assert all(k.all() for k in keep_within([torch.randn(5), torch.zeros(3)], [2, 9], 0.0))


def test_equal_scores_go_in_order() -> None:
    first, second = keep_within([torch.ones(4), torch.ones(4)], [1, 1], 0.25)
    assert first.tolist() == [True, False, False, True]
    assert second.all()

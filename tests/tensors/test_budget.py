"""All units compete, the cheapest in score go first, and nothing dies out."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.tensors.budget import keep_alike, keep_in_pools, keep_on, keep_within
from trimtab.tensors.schedules import between, cubic


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
    for keep, score in zip(keeps, scores, strict=True):
        others = score[keep & (score != score.max())]
        assert keep.all() or not len(others) or score[~keep].max() <= others.min()


def test_nothing_goes_at_zero() -> None:
    assert all(k.all() for k in keep_within([torch.randn(5), torch.zeros(3)], [2, 9], 0.0))


def test_equal_scores_go_in_order() -> None:
    first, second = keep_within([torch.ones(4), torch.ones(4)], [1, 1], 0.25)
    assert first.tolist() == [True, False, False, True]
    assert second.all()


def test_cheap_units_make_up_for_a_dear_one_that_does_not_fit() -> None:
    dear, cheap = keep_within([torch.tensor([0.0, 9.0]), torch.arange(1.0, 11.0)], [100, 1], 0.05)
    assert dear.all()
    assert int((~cheap).sum()) == 9  # of 10: the best one stays


def test_pools_lose_their_own_part_and_the_cheapest_meet_the_budget() -> None:
    scores = [torch.arange(3.0), torch.arange(3.0), torch.arange(100.0), torch.arange(100.0) - 1000]
    costs = [50, 50, 1, 1]
    keeps = keep_in_pools(scores, costs, [([i], 0.2 * 150 if i < 2 else 20) for i in range(4)], 100.0)
    gone = [int((~keep).sum()) for keep in keeps]
    assert gone == [1, 1, 0, 0]
    keeps = keep_in_pools(scores, costs, [([i], 15 if i < 2 else 10) for i in range(4)], 50.0)
    assert [int((~keep).sum()) for keep in keeps] == [0, 0, 25, 25]
    keeps = keep_in_pools(scores, costs, [([2, 3], 1)], 50.0)
    assert [int((~keep).sum()) for keep in keeps] == [0, 0, 0, 50]


def test_what_whole_units_miss_is_asked_of_the_next_pool() -> None:
    scores, pools = [torch.rand(3, generator=torch.Generator().manual_seed(i)) for i in range(5)], [([i], 6.0) for i in range(5)]
    gone = [int((~keep).sum()) for keep in keep_in_pools(scores, [10] * 5, pools, 30.0)]
    assert gone == [1, 1, 1, 1, 1]
    gone = [int((~keep).sum()) for keep in keep_on(scores, [10] * 5, pools, 30.0)]
    assert gone == [1, 0, 1, 0, 1]


def closing(scores, costs, requests):
    """Keeps after every one of the requests (pools, budget); scores: by request, of every coupling."""
    keeps, found = [torch.ones(len(s), dtype=torch.bool) for s in scores[0]], []
    for now, (pools, budget) in zip(scores, requests, strict=True):
        keeps = keep_on([s.masked_fill(~k, -torch.inf) for s, k in zip(now, keeps, strict=True)], costs, pools, budget)
        found.append(keeps)
    return found


def gone(keeps, costs):
    return sum(int((~k).sum()) * c for k, c in zip(keeps, costs, strict=True))


def never_reopens(found, units):
    before = [torch.ones(n, dtype=torch.bool) for n in units]
    for keeps in found:
        assert all(not bool((now & ~was).any()) for now, was in zip(keeps, before, strict=True))
        assert all(bool(now.any()) for now in keeps)
        before = keeps


@settings(max_examples=60, deadline=None)
@given(
    blocks=st.integers(1, 26),
    groups=st.tuples(st.integers(1, 4), st.integers(1, 60)),
    neurons=st.tuples(st.integers(2, 40), st.integers(1, 12)),
    sparsity=st.floats(0.01, 0.9),
    kinds=st.sampled_from(["both", "groups", "neurons"]),
    staged=st.booleans(),
    seed=st.integers(0, 999),
)
def test_what_is_closed_stays_closed_while_the_budget_grows(blocks, groups, neurons, sparsity, kinds, staged, seed) -> None:
    """In proportion along a cubic schedule, as loraprune asks, and by what blocks are worth then, as adapt_pruner_tuned does."""
    shapes = [s for s, kind in ((groups, "groups"), (neurons, "neurons")) if kinds in ("both", kind)] * blocks
    units, costs = ([s[i] for s in shapes] for i in (0, 1))
    draw = torch.Generator().manual_seed(seed)
    whole = [float(n * c) for n, c in shapes]
    budget = sparsity * sum(c * (n - 1) for n, c in shapes)
    scores = [[torch.rand(n, generator=draw) for n in units] for _ in range(10)]
    requests, owed = [], [0.0] * len(whole)
    for stage in range(1, 11):
        part = stage / 10 if staged else cubic(between(stage / 10, 0.1, 0.9))
        turns = (1 - (2 * torch.rand(len(whole), generator=draw) - 1)).tolist() if staged else [1.0] * len(whole)
        owed = [had + turn * budget / 10 * own / sum(whole) for had, turn, own in zip(owed, turns, whole, strict=True)]
        alike = [part * budget * own / sum(whole) for own in whole]
        requests.append(([([i], cost) for i, cost in enumerate(owed if staged else alike)], part * budget))
    found = closing(scores, costs, requests)
    never_reopens(found, units)
    for keeps, (_, asked) in zip(found, requests, strict=True):
        assert gone(keeps, costs) <= asked + max(costs) / 2
    spare = sum((int(k.sum()) - 1) * c for k, c in zip(found[-2], costs, strict=True) if c == min(costs))
    whole_units = min(costs) if spare >= max(costs) else max(costs)  # the cheap ones make up for what dear ones miss
    assert abs(gone(found[-1], costs) - budget) <= whole_units / 2 + 1e-6


def test_a_schedule_of_a_deep_model_closes_every_group_once() -> None:
    units, costs = [3, 300] * 26, [1200, 27] * 26
    whole = [float(n * c) for n, c in zip(units, costs, strict=True)]
    draw = torch.Generator().manual_seed(0)
    scores, requests = [], []
    for step in range(10, 101, 10):
        budget = cubic(between(step / 100, 0.1, 0.9)) * 0.2 * sum(whole)
        scores.append([torch.rand(n, generator=draw) for n in units])
        requests.append(([([i], budget * own / sum(whole)) for i, own in enumerate(whole)], budget))
    found = closing(scores, costs, requests)
    never_reopens(found, units)
    assert abs(gone(found[-1], costs) - requests[-1][1]) <= 27 / 2
    assert max(int((~keep).sum()) for keep in found[-1][::2]) == 1  # 0.6 of a group from each


def test_units_that_compete_in_one_pool_stay_closed_too() -> None:
    draw, costs = torch.Generator().manual_seed(0), [7, 1]
    scores = [[torch.rand(6, generator=draw), torch.rand(40, generator=draw)] for _ in range(20)]
    requests = [([([0, 1], 2.5 * turn)], 2.5 * turn) for turn in range(1, 21)]
    found = closing(scores, costs, requests)
    never_reopens(found, [6, 40])
    assert abs(gone(found[-1], costs) - 50) <= 3.5


def test_couplings_of_a_kind_keep_equally_many() -> None:
    draw, costs, kinds = torch.Generator().manual_seed(1), [9, 1] * 3, ["dear", "cheap"] * 3
    scores = [torch.rand(n, generator=draw) for n in [4, 30] * 3]
    for pools in ([([i], 30.0) for i in range(6)], [(range(6), 60.0)]):
        keeps = keep_alike(scores, costs, kinds, pools, 60.0)
        assert len({int(keep.sum()) for keep in keeps[::2]}) == len({int(keep.sum()) for keep in keeps[1::2]}) == 1
        assert abs(gone(keeps, costs) - 60) <= 3 / 2
        turned = [s.flip(0).masked_fill(~k, -torch.inf) for s, k in zip(scores, keeps, strict=True)]
        never_reopens([keeps, keep_alike(turned, costs, kinds, pools, 75.0)], [4, 30] * 3)
        for score, keep in zip(scores, keeps, strict=True):
            assert keep.all() or score[~keep].max() <= score[keep].min()

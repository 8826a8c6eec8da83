"""What allocators that search or score make of losses and scores that are given to them."""

from collections.abc import Callable
from itertools import product
from math import inf

import pytest
import torch

from trimtab.core.errors import UsageError
from trimtab.core.kinds import Candidate, Original, Seen, Storage, Trials
from trimtab.core.places import Role, Site
from trimtab.core.registry import get
from trimtab.stats import BlockCosine, InputNorm

BLOCKS = 3
SHAPES = {Role.UP: (8, 16), Role.Q: (8, 8)}
SITES = [Site(f"layers.{b}.{role}", role, shape, block=b) for b in range(BLOCKS) for role, shape in SHAPES.items()]
UNKNOWN = Storage(lambda site, level: None, lambda site, level: 0, None, 1, 1)


class Told:
    """Trials that answer by a formula, and remember what they were asked."""

    windows = 8

    def __init__(self, loss: Callable[[Candidate], float]):
        self.loss, self.asked = loss, []

    def losses(self, candidates, windows=None):
        self.asked += [(candidate, None if windows is None else tuple(windows)) for candidate in candidates]
        return [self.loss(candidate) for candidate in candidates]


def chosen(method, trials: Told, seed: int = 0):
    seen = Seen({Trials: trials, Storage: UNKNOWN}, torch.Generator().manual_seed(seed))
    found = method.allocate(SITES, seen)
    return tuple(found[site] for site in SITES)


def weight(site: Site) -> int:
    return site.shape[0] * site.shape[1]


def cost(levels) -> float:
    return sum(level * weight(site) for level, site in zip(levels, SITES, strict=True))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("mean", [2.5, 3])
def test_the_program_finds_what_trying_everything_finds(seed, mean) -> None:
    """Distortions that add up: of all mixtures that cost as much as can be, the least sum."""
    chance = torch.Generator().manual_seed(seed)
    rises = torch.rand(len(SITES), 2, generator=chance, dtype=torch.float64)
    distortion = {4: [0.0] * len(SITES), 3: rises[:, 0].tolist(), 2: rises.sum(1).tolist()}

    def loss(candidate) -> float:
        return sum(distortion[level][place] for place, level in enumerate(candidate) if level is not None)

    trials = Told(loss)
    found = chosen(get("rd_prune")(mean=mean), trials)
    every = [c for c in product((2, 3, 4), repeat=len(SITES)) if cost(c) <= mean * sum(map(weight, SITES))]
    largest = max(map(cost, every))
    assert cost(found) == largest
    assert loss(found) == pytest.approx(min(loss(c) for c in every if cost(c) == largest))
    assert len(trials.asked) == 3 * len(SITES)
    assert all(sum(level is not None for level in candidate) == 1 for candidate, _ in trials.asked)


def test_a_level_with_which_nothing_could_be_judged_is_avoided() -> None:
    trials = Told(lambda candidate: inf if candidate[0] == 2 else 1.0)
    found = chosen(get("rd_prune")(mean=3), trials)
    assert found[0] != 2


def test_a_curve_that_dips_is_made_to_rise() -> None:
    """Two bits seem better than three at the first site. That is noise: nothing is won by taking more away."""
    table = {4: 0.0, 3: 5.0, 2: 1.0}
    trials = Told(
        lambda candidate: sum(table[level] if place == 0 else 4 - level for place, level in enumerate(candidate) if level)
    )
    assert chosen(get("rd_prune")(mean=3), trials)[0] == 4


def test_blocks_may_have_one_level() -> None:
    trials = Told(lambda candidate: sum((4 - level) * (1 + 2 * (place < 2)) for place, level in enumerate(candidate) if level))
    found = chosen(get("rd_prune")(mean=3, per="block"), trials)
    assert [found[i] == found[i + 1] for i in (0, 2, 4)] == [True] * 3
    assert found[0] == 4
    assert len(trials.asked) == 3 * BLOCKS


def test_kinds_of_matrices_may_have_one_level() -> None:
    """The narrow ones matter: five bits for them, and two for the wide ones, are as many as three for all."""
    trials = Told(lambda candidate: sum((4 - level) * (1 + 2 * (place % 2)) for place, level in enumerate(candidate) if level))
    found = chosen(get("rd_prune")(levels="bits=2,3,5", mean=3, per="role"), trials)
    assert found == (2, 5) * BLOCKS
    assert len(trials.asked) == 3 * len(SHAPES)


def test_evolution_reads_little_first_and_everything_last() -> None:
    trials = Told(lambda candidate: sum((4 - level) ** 2 * (1 + place) for place, level in enumerate(candidate)))
    found = chosen(get("evopress")(mean=3, generations=15), trials)
    sizes = [len(windows) for _, windows in trials.asked]
    assert set(sizes) == {1, 4, 8}
    assert all(windows == tuple(range(8)) for _, windows in trials.asked if len(windows) == 8)
    assert len({windows for _, windows in trials.asked if len(windows) == 1}) > 2
    every = [c for c in product((2, 3, 4), repeat=len(SITES)) if cost(c) == 3 * sum(map(weight, SITES))]
    assert {cost(candidate) for candidate, _ in trials.asked} == {cost(found)}
    assert trials.loss(found) == min(map(trials.loss, every))


def test_what_cannot_be_judged_decides_nothing() -> None:
    with pytest.raises(ArithmeticError, match="no candidate"):
        chosen(get("evopress")(), Told(lambda candidate: inf))
    with pytest.raises(ArithmeticError, match="a team of blocks"):
        chosen(get("sv_nup")(), Told(lambda candidate: inf))


def test_blocks_that_are_missed_most_are_pruned_least() -> None:
    """Losses that add up are the Shapley values themselves."""
    parts = [3.0, 1.0, 2.0]
    trials = Told(lambda candidate: sum(parts[block] for block in range(BLOCKS) if candidate[2 * block] is not None))
    found = chosen(get("sv_nup")(sparsity=0.6, reach=0.1), trials)
    assert found == pytest.approx([0.5, 0.5, 0.7, 0.7, 0.6, 0.6])
    assert len(trials.asked) == 2**BLOCKS


def test_outliers_are_counted_per_block() -> None:
    """One weight in a hundred that is loud makes the second block's share the largest, the third's half of it."""
    weights = {site: torch.ones(site.shape) for site in SITES}
    weights[SITES[2]][0, :8] = 100
    weights[SITES[4]][0, :4] = 100
    seen = Seen({Original: weights, InputNorm: {site: torch.ones(site.shape[1]) for site in SITES}})
    found = get("owl")(sparsity=0.6, reach=0.1).allocate(SITES, seen)
    by_block = [found[SITES[2 * block]] for block in range(BLOCKS)]
    assert by_block == pytest.approx([0.7, 0.5, 0.6])


def test_scores_are_weights_times_inputs() -> None:
    weights = {site: torch.ones(site.shape) for site in SITES}
    norms = {site: torch.ones(site.shape[1]) for site in SITES}
    norms[SITES[0]] = torch.tensor([100.0] + [1.0] * 15)
    found = get("owl")(sparsity=0.6, reach=0.1).allocate(SITES, Seen({Original: weights, InputNorm: norms}))
    assert found[SITES[0]] < found[SITES[2]] == found[SITES[4]]


def test_blocks_that_turn_the_stream_least_are_pruned_most() -> None:
    seen = Seen({BlockCosine: torch.tensor([0.5, 0.9, 0.7], dtype=torch.float64)})
    found = get("cosine")(sparsity=0.6, reach=0.1).allocate(SITES, seen)
    assert [found[SITES[2 * b]] for b in range(BLOCKS)] == pytest.approx([0.5, 0.7, 0.6])


@pytest.mark.parametrize("id", ["owl", "cosine", "sv_nup"])
def test_what_is_in_no_block_has_no_score(id) -> None:
    head = Site("lm_head", Role.HEAD, (97, 8))
    seen = Seen({BlockCosine: torch.ones(3), Original: {}, InputNorm: {}, Trials: Told(len)})
    with pytest.raises(UsageError, match="lm_head is in no block"):
        get(id)().allocate([*SITES, head], seen)

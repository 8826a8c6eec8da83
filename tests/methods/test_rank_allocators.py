"""Which matrices keep how many parameters: the budget is met, and the criterion decides."""

import math

import pytest
import torch

from trimtab.core.kinds import Original, Seen
from trimtab.core.places import Role, Site
from trimtab.core.registry import get
from trimtab.stats import Gram
from trimtab.tensors.allocation import filled
from trimtab.tensors.lowrank import rank_for

ROLES = ((Role.Q, (32, 32)), (Role.K, (16, 32)), (Role.V, (16, 32)), (Role.DOWN, (32, 64)))
SITES = [Site(f"layers.{b}.{role}", role, shape, block=b) for b in range(2) for role, shape in ROLES]
SIZES = [s.shape[0] * s.shape[1] for s in SITES]


def normal(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def decaying(site: Site, power: float) -> torch.Tensor:
    """A matrix whose i-th singular value is i^-power."""
    least = min(site.shape)
    u, v = (torch.linalg.qr(normal(n, least, seed=i))[0] for i, n in enumerate(site.shape))
    return (u * torch.arange(1, least + 1) ** -power) @ v.T


def shown(powers: list[float]) -> Seen:
    weights = {s: decaying(s, p) for s, p in zip(SITES, powers, strict=True)}
    return Seen({Original: weights, Gram: {s: torch.eye(s.shape[1]) for s in SITES}})


def held(chosen: dict[Site, float]) -> float:
    return sum(chosen[s] * size for s, size in zip(SITES, SIZES, strict=True)) / sum(SIZES)


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("method", ["d_rank", "welore"])
def test_the_budget_is_met(method: str, keep: float) -> None:
    powers = [0.5 + 0.1 * i for i in range(8)]
    chosen = get(method)(keep=keep).allocate(SITES, shown(powers))
    largest = max(sum(s.shape) for s in SITES) / sum(SIZES)  # one rank
    assert keep - largest <= held(chosen) <= keep + 1e-3
    assert all(0.01 <= share <= 1 for share in chosen.values())


@pytest.mark.parametrize("method", ["d_rank", "welore"])
def test_flat_spectra_keep_more(method: str) -> None:
    """Of two blocks with equal shapes the one with the flat spectra."""
    knobs = {"rebalance": 0.0} if method == "d_rank" else {}
    chosen = get(method)(keep=0.5, **knobs).allocate(SITES, shown([1.5] * 4 + [0.3] * 4))
    shares = [chosen[s] for s in SITES]
    assert all(steep < flat for steep, flat in zip(shares[:4], shares[4:], strict=True))


def test_d_rank_by_its_formula() -> None:
    """Where no bound is met: k ~ sqrt(R / (out + in))."""
    powers = [0.6, 0.8, 0.7, 0.9, 0.8, 0.6, 0.9, 0.7]
    chosen = get("d_rank")(keep=0.3, rebalance=0.0).allocate(SITES, shown(powers))
    factors = []
    for site, power in zip(SITES, powers, strict=True):
        energy = torch.arange(1, min(site.shape) + 1, dtype=torch.float64) ** (-2 * power)
        share = energy / energy.sum()
        rank = chosen[site] * site.shape[0] * site.shape[1] / sum(site.shape)
        factors.append(rank / math.sqrt(math.exp(-float((share * share.log()).sum())) / sum(site.shape)))
    assert factors == pytest.approx([factors[0]] * 8, rel=1e-3)


def test_d_rank_moves_parameters_to_values() -> None:
    powers = [0.8] * 8
    before, after = (get("d_rank")(keep=0.4, rebalance=r).allocate(SITES, shown(powers)) for r in (0.0, 0.2))
    q, k, v, down = SITES[:4]
    assert after[q] == pytest.approx(0.8 * before[q])
    assert after[k] == pytest.approx(0.8 * before[k])
    assert after[v] > before[v]
    assert after[down] == before[down]
    assert held(after) == pytest.approx(held(before))


def test_values_take_no_more_than_they_can_hold() -> None:
    chosen = get("d_rank")(keep=0.9, rebalance=1.0).allocate(SITES, shown([0.8] * 8))
    assert chosen[SITES[2]] == 1.0
    assert held(chosen) == pytest.approx(0.9)


def test_welore_cuts_all_spectra_at_one_height() -> None:
    powers = [0.5, 1.0, 0.7, 0.9, 0.6, 1.1, 0.8, 0.4]
    seen = shown(powers)
    chosen = get("welore")(keep=0.4).allocate(SITES, seen)
    smallest, largest = [], []  # of what is kept, and of what is not
    for site in SITES:
        values = torch.linalg.svdvals(seen[Original][site].double())
        values = (values - values.min()) / (values.max() - values.min())
        rank = rank_for(site.shape, chosen[site])
        smallest.append(float(values[rank - 1]))
        largest.append(float(values[rank]))
    assert max(largest) < min(smallest)


def test_shares_fill_up_to_their_bounds() -> None:
    weights, low, high = (torch.tensor(v, dtype=torch.float64) for v in ([1, 2, 7], [1, 1, 1], [100, 100, 40]))
    assert filled(weights, low, high, 30.0).tolist() == pytest.approx([3, 6, 21])
    assert filled(weights, low, high, 100.0).tolist() == pytest.approx([20, 40, 40])
    assert filled(weights, low, high, 2.0).tolist() == [1, 1, 1]
    assert filled(weights, low, high, 1e6).tolist() == [100, 100, 40]
    assert filled(torch.zeros(3).double(), low, high, 30.0).tolist() == pytest.approx([10, 10, 10])

"""Fewer tokens than channels leave a singular gram: what was added to it is in the receipt, and so is what had to be raised."""

import pytest
import torch

from trimtab.anatomy import Anatomy
from trimtab.core.kinds import Original, Seen
from trimtab.core.places import Role, Site
from trimtab.core.recipe import Recipe
from trimtab.core.registry import get
from trimtab.formats import Dense
from trimtab.stats import Gram
from trimtab.testing.problems import layer, seen
from trimtab.testing.roundtrip import ran
from trimtab.testing.tiny import tiny


def singular(width: int, seed: int = 0) -> torch.Tensor:
    """The gram of three tokens."""
    x = torch.randn(3, width, generator=torch.Generator().manual_seed(seed))
    return x.T @ x / 3


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("damping", [0.0, 1e-4, 0.1])
def test_lord_says_what_it_added(damping: float, centred: bool) -> None:
    problem = layer(tokens=3)
    made, weight = get("lord")(keep=0.5, damping=damping, centred=centred), Dense(problem.weight)
    told = seen(made, problem)
    answer = made.solve(weight, told, problem.site)
    assert bool(answer.dense().isfinite().all())
    assert told.notes["damping"] == damping


@pytest.mark.parametrize(("damping", "raised"), [(1e-4, False), (0.0, True)])
def test_d_rank_says_what_it_added_and_where_that_was_too_little(damping: float, raised: bool) -> None:
    sites = [Site(f"layers.0.{role}", role, (24, 48), block=0) for role in (Role.Q, Role.K, Role.V)]
    weights = {site: torch.randn(24, 48, generator=torch.Generator().manual_seed(i)) for i, site in enumerate(sites)}
    grams = {site: singular(48) for site in sites[:2]} | {sites[2]: torch.eye(48)}
    told = Seen({Original: weights, Gram: grams})
    chosen = get("d_rank")(keep=0.5, damping=damping).allocate(sites, told)
    assert all(0 < share <= 1 for share in chosen.values())
    assert told.notes["damping"] == damping
    said = {key: value for key, value in told.notes.items() if key != "damping"}
    assert [*said] == ([f"damping: {site.name}" for site in sites[:2]] if raised else [])
    assert all(value > damping for value in said.values())


@pytest.mark.parametrize(("damping", "raised"), [(1e-4, False), (0.0, True)])
def test_basis_sharing_says_what_it_added_and_where_that_was_too_little(damping: float, raised: bool) -> None:
    """Grams of three tokens everywhere but for the output projections, which are factored alone."""
    anatomy = Anatomy.of(tiny("llama"))
    grams = {s: torch.eye(s.shape[1]) if s.role is Role.O else singular(s.shape[1], 0) for s in anatomy.sites}
    told = Seen({Gram: grams})
    assert get("basis_sharing")(keep=0.6, damping=damping).rewrite(anatomy, told)
    assert told.notes["damping"] == damping
    said = {key: value for key, value in told.notes.items() if key.startswith("damping: ")}
    assert bool(said) == raised
    assert all(value > damping for value in said.values())
    assert not [key for key in said if "o_proj" in key]


def test_nothing_was_added_where_nothing_was_factored() -> None:
    anatomy = Anatomy.of(tiny("llama"))
    told = Seen({Gram: {s: singular(s.shape[1]) for s in anatomy.sites}})
    assert get("basis_sharing")(keep=1.0).rewrite(anatomy, told) == []
    assert "damping" not in told.notes


@pytest.mark.parametrize("recipe", ["lord(keep=0.5)", "basis_sharing(keep=0.5)"])
def test_receipts_of_a_model_have_it(recipe: str) -> None:
    bench = ran("llama", Recipe.of(recipe))[1]
    assert bench.receipts
    assert {receipt.notes["damping"] for receipt in bench.receipts} == {1e-4}

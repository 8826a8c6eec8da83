"""SpIEL: entries move to where the gradient is largest, none twice, and Adam knows of the new ones what it would have known."""

from dataclasses import dataclass

import pytest
import torch
from torch.optim import AdamW

from trimtab.core.errors import UsageError
from trimtab.core.kinds import Seen
from trimtab.core.places import Role, Site
from trimtab.core.seeds import Seeds
from trimtab.core.trained import Hook
from trimtab.formats import Dense
from trimtab.methods.adapt.spiel import Outer, Pulls, SparseDelta, Spiel, exchange
from trimtab.testing.problems import layer

SITE = Site("model.layers.0.mlp.down_proj", Role.DOWN, (8, 16), block=0)


def attached(made: Spiel) -> SparseDelta:
    return made.attach(Dense(torch.zeros(SITE.shape)), Seen({}, Seeds(0).at("x")), SITE)


@dataclass(frozen=True)
class Course:
    steps: int = 40


def trained(made: Spiel, wanted: torch.Tensor, steps: int) -> tuple[SparseDelta, AdamW]:
    """Towards the matrix `wanted` [8, 16], whose entries are the negative of the first gradient."""
    delta = attached(made)
    hook = made.hook({SITE: delta})
    hook = hook or Hook()
    optimizer = AdamW([delta.values], lr=0.2, weight_decay=0.0)
    hook.begin(Course())  # type: ignore[arg-type]
    x = torch.eye(16)
    for step in range(steps):
        hook.before_step(step, optimizer)
        optimizer.zero_grad()
        (0.5 * (delta(x, x @ torch.zeros(16, 8), lambda: torch.zeros(8, 16)).T - wanted).square().sum()).backward()
        hook.before_update(step, optimizer)
        optimizer.step()
        hook.after_update(step, optimizer)
        assert len(delta.places.unique()) == len(delta.places), "a place is there twice"
    return delta, optimizer


def test_the_first_move_goes_to_the_largest_gradients() -> None:
    wanted = layer(8, 16).weight
    delta, _ = trained(Spiel(density=0.1, every=10, window=5), wanted, 5)
    assert set(delta.places.tolist()) == set(wanted.flatten().abs().topk(13).indices.tolist())
    assert not delta.values.any() or delta.values.count_nonzero() < 13, "what is new begins at zero"


def test_adam_goes_on_as_if_it_had_seen_the_mean_gradient_all_the_time() -> None:
    wanted = layer(8, 16).weight
    delta, optimizer = trained(Spiel(density=0.1, every=10, window=5), wanted, 5)
    new = delta.values.detach() == 0
    state = optimizer.state[delta.values]
    corrected = state["exp_avg"] / (1 - 0.9**5)
    torch.testing.assert_close(corrected[new], -wanted.flatten()[delta.places.long()][new], atol=1e-5, rtol=1e-5)
    root = (state["exp_avg_sq"] / (1 - 0.999**5)).sqrt()
    torch.testing.assert_close(root[new], corrected[new].abs(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("growth", ["gradient", "momentum"])
def test_moving_comes_closer_than_staying(growth: str) -> None:
    """A matrix with one row that matters more than the others."""
    wanted = torch.full((8, 16), 0.1)
    wanted[3] = 3.0
    left = []
    for found in (growth, "none"):
        delta, _ = trained(Spiel(density=0.125, growth=found), wanted, 40)
        left.append(float((delta.dense() - wanted).detach().square().sum()))
    assert left[0] < 0.9 * left[1]


def test_the_last_moves_leave_time_to_learn() -> None:
    places = [trained(Spiel(density=0.1, every=10, window=5), layer(8, 16).weight, steps)[0].places for steps in (26, 40)]
    assert torch.equal(*(one.sort().values for one in places))


def test_what_is_dropped_and_found_again_stays() -> None:
    places, values = torch.tensor([4, 7, 9]), torch.tensor([0.1, 3.0, -0.2])
    given_up, taken = exchange(places, values, torch.tensor([9, 7, 1, 2]), torch.tensor([5.0, 4.0, 3.0, 2.0]), 2)
    assert (given_up.tolist(), taken.tolist()) == ([0], [1]), "7 is kept, 9 was found again, 1 is the next best"


def test_row_and_column_moments_grow_where_both_are_large() -> None:
    delta = SparseDelta(torch.tensor([0, 5, 127], dtype=torch.int32), torch.zeros(3), (8, 16))
    outer = Outer(delta)
    delta.values.grad = torch.tensor([1.0, 2.0, 3.0])
    outer.step()
    assert (float(outer.rows[0]), float(outer.columns[5]), float(outer.rows[7])) == (4.0, 4.0, 9.0)
    places, scores = outer.best()
    assert sorted(places.tolist()[:2]) == [15, 7 * 16 + 5]
    assert scores[:2].tolist() == [36.0, 36.0]


@pytest.mark.parametrize(("growth", "most"), [("gradient", 1.01), ("momentum", 1.5)])
def test_what_is_new_steps_no_further_than_the_rate(growth: str, most: float) -> None:
    """Where gradients stay what they are, Adam's steps are as long as the rate, at any age of an entry; rows and columns may
    say less than an entry's own square."""
    made = Spiel(density=0.125, every=20, window=5, growth=growth)
    delta = attached(made)
    hook = made.hook({SITE: delta})
    assert hook is not None
    optimizer = AdamW([delta.values], lr=0.01, weight_decay=0.0)
    hook.begin(Course(200))  # type: ignore[arg-type]
    pull, x, furthest = layer(8, 16).weight, torch.eye(16), 0.0
    for step in range(200):
        hook.before_step(step, optimizer)
        optimizer.zero_grad()
        (delta(x, x @ torch.zeros(16, 8), lambda: torch.zeros(8, 16)).T * pull).sum().backward()
        hook.before_update(step, optimizer)
        before = delta.values.detach().clone()
        optimizer.step()
        furthest = max(furthest, float((delta.values.detach() - before).abs().max()))
        hook.after_update(step, optimizer)
    assert furthest < most * 0.01


def test_candidates_are_clipped_as_the_entries_are() -> None:
    delta = attached(Spiel(density=0.1))
    pulls, x, pull = Pulls(delta), torch.eye(16), layer(8, 16).weight
    pulls.open(first=True)
    (delta(x, x @ torch.zeros(16, 8), lambda: torch.zeros(8, 16)).T * pull).sum().backward()
    assert delta.values.grad is not None
    delta.values.grad *= 0.25
    pulls.step()
    torch.testing.assert_close(pulls.sums, 0.25 * pull.flatten()[pulls.candidates.long()])


def test_a_window_has_to_fit() -> None:
    with pytest.raises(UsageError, match="a window of 30 steps does not fit between moves every 20"):
        Spiel(window=30)

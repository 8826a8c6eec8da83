"""A private training: every row by itself, noise as it is accounted for, and never more spent than allowed."""

from math import sqrt

import pytest
import torch

from trimtab.anatomy import Anatomy
from trimtab.core.errors import UsageError
from trimtab.core.expression import make
from trimtab.core.recipe import Where
from trimtab.core.seeds import Seeds
from trimtab.data.examples import Row
from trimtab.engine import adapting
from trimtab.formats.deltas import LowRankDelta
from trimtab.host.accounting import Account, best_order, noise_for
from trimtab.host.pretrain import Course
from trimtab.host.private import Privacy, _told, example_gradients, tune_privately
from trimtab.host.steering import FARTHEST_BOUND, FARTHEST_NOISE, VOTES, Settings, Steering
from trimtab.testing.tiny import tiny

COURSE = Course(steps=20, batch=2, length=12, learning_rate=1e-3, decay=0.0)


def begun() -> tuple[torch.nn.Module, list[LowRankDelta], list[Row]]:
    model = tiny("llama")
    found = adapting.attach(Anatomy.of(model), make("lora", {"rank": 2}), Where(only=("*q_proj", "*down_proj")), Seeds(0))
    deltas = [delta for delta in found.values() if isinstance(delta, LowRankDelta)]
    draw = Seeds(0).at("rows")
    with torch.no_grad():
        for delta in deltas:
            delta.left.normal_(0, 0.1, generator=draw)
    rows = []
    for size in (12, 7, 9, 12):
        learned = torch.arange(size) >= size // 2
        rows.append(Row(torch.randint(3, 60, (size,), generator=draw), learned))
    return model, deltas, rows


def test_gradients_of_rows_are_those_of_each_by_itself() -> None:
    model, deltas, rows = begun()
    together = example_gradients(model, deltas, rows)
    for number, row in enumerate(rows):
        logits = model(input_ids=row.ids[None]).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits, row.labels[1:], ignore_index=-100)
        wanted = torch.autograd.grad(loss, [factor for delta in deltas for factor in (delta.left, delta.right)])
        found = [factor[number] for pair in together for factor in pair]
        for one, other in zip(found, wanted, strict=True):
            assert (one - other).norm() < 1e-4 * other.norm()


def test_bad_promises_are_refused() -> None:
    with pytest.raises(UsageError, match="above 0"):
        Privacy(noise=0.0)
    with pytest.raises(UsageError, match="needs an epsilon to spend, or noise"):
        Privacy(epsilon=None)
    model, deltas, rows = begun()
    with pytest.raises(UsageError, match="public rows"):
        tune_privately(model, deltas, rows, COURSE, Privacy(steered=2))


def test_epsilon_is_the_accountants_for_the_noise_that_was_added(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step's gradient is compared with the clipped sums; what lies between is normal with the deviation accounted for."""
    accountants = pytest.importorskip("opacus.accountants")
    from trimtab.host import private

    model, deltas, rows = begun()
    steps: list[torch.Tensor] = []
    sums, within = private._sums, torch.optim.AdamW.step

    def watched(*given: object) -> tuple[list[torch.Tensor], torch.Tensor]:
        found, votes = sums(*given)  # type: ignore[arg-type]
        steps.append(-torch.cat([one.flatten() for one in found]) / COURSE.batch)
        return found, votes

    def stepped(self: torch.optim.AdamW) -> None:
        steps[-1] += torch.cat([p.grad.flatten() for group in self.param_groups for p in group["params"]])
        within(self)

    monkeypatch.setattr(private, "_sums", watched)
    monkeypatch.setattr(torch.optim.AdamW, "step", stepped)
    privacy = Privacy(noise=2.0, bound=0.1, epsilon=None)
    spent = tune_privately(model, deltas, rows, COURSE, privacy, Seeds(0).at("noise"))
    accountant = accountants.RDPAccountant()
    for _ in range(COURSE.steps):
        accountant.step(noise_multiplier=2.0, sample_rate=0.5)
    assert (spent.steps, spent.epsilon) == (20, accountant.get_epsilon(delta=1e-5))
    added = torch.cat(steps).double() * COURSE.batch / (privacy.bound * sqrt(len(deltas)))
    assert abs(float(added.std()) / privacy.noise - 1) < 4 / sqrt(2 * len(added))


def test_it_stops_before_more_is_spent_than_allowed() -> None:
    pytest.importorskip("opacus")
    model, deltas, rows = begun()
    spent = tune_privately(model, deltas, rows, COURSE, Privacy(noise=1.0, epsilon=8.0), Seeds(0).at("noise"))
    assert 0 < spent.steps < COURSE.steps
    assert spent.epsilon <= 8.0


def test_noise_is_found_that_spends_what_there_is_and_no_more() -> None:
    pytest.importorskip("opacus")
    model, deltas, rows = begun()
    spent = tune_privately(model, deltas, rows, COURSE, Privacy(epsilon=6.0), Seeds(0).at("noise"))
    assert spent.steps == COURSE.steps
    assert 5.9 < spent.epsilon <= 6.0
    assert spent.noise == noise_for(6.0, 1e-5, 0.5, COURSE.steps)


def test_an_account_of_changing_noise_is_opacus_own() -> None:
    accountants = pytest.importorskip("opacus.accountants")
    theirs, ours = accountants.RDPAccountant(), Account(0.1, 1e-5)
    for noise in (1.0, 1.0, 1.4, 0.8, 1.4):
        wanted = ours.epsilon(noise)
        theirs.step(noise_multiplier=noise, sample_rate=0.1)
        ours.take(noise)
        assert ours.epsilon() == pytest.approx(theirs.get_epsilon(delta=1e-5), rel=1e-12)
        assert wanted == ours.epsilon()
    one = Account(0.1, 1e-5, best_order(1.0, 1e-5, 0.1, 20))
    one.taken[1.0], ours.taken = 20, {1.0: 20}
    assert one.epsilon() == ours.epsilon(), "at equal noise the order chosen beforehand is the best"
    one.taken[4.0], ours.taken[4.0] = 2000, 2000
    assert one.epsilon() > ours.epsilon()


def test_an_agent_moves_what_it_may_and_the_budget_holds() -> None:
    """What every step tells has the multiplier that is accounted for; bounds of a group are one."""
    pytest.importorskip("opacus")
    model, deltas, rows = begun()
    groups = [number // 2 for number in range(len(deltas))]
    privacy = Privacy(epsilon=6.0, bound=0.05, steered=2)
    spent = tune_privately(model, deltas, rows, COURSE, privacy, Seeds(0).at("noise"), public=rows[:2], groups=groups)
    assert spent.epsilon <= 6.0
    assert [steps for steps, _, _ in spent.moves] == list(range(2, spent.steps + 1, 2))
    account, noise = Account(0.5, 1e-5, best_order(spent.noise, 1e-5, 0.5, COURSE.steps)), spent.noise
    settings = {0: spent.noise * (1 + VOTES**-2) ** 0.5, **{steps: noise for steps, noise, _ in spent.moves}}
    for step in range(spent.steps):
        noise = settings.get(step, noise if step else settings[0])
        account.take((noise**-2 + (VOTES * noise) ** -2) ** -0.5)
    assert account.epsilon() == pytest.approx(spent.epsilon, rel=1e-9)
    for _, noise, bounds in spent.moves:
        assert len(bounds) == len(deltas) // 2
        assert all(1 / FARTHEST_BOUND <= bound / 0.05 <= FARTHEST_BOUND for bound in bounds)
        assert 1 / FARTHEST_NOISE <= noise / settings[0] <= FARTHEST_NOISE
    assert len({bound for _, _, bounds in spent.moves for bound in bounds}) > 1


def test_what_a_step_tells_the_agent_has_the_noise_that_is_accounted_for() -> None:
    """Without rows there is nothing but noise: of the sums by the bound of each pair, of the votes by how many there are."""
    model, deltas, _ = begun()
    settings = Steering(0.1, 1.5, [number % 3 for number in range(len(deltas))], 2, lambda: 1.0, 8.0, 20, 0)
    settings.bounds = [0.1 * (1 + number) for number in range(len(deltas))]
    assert settings.multiplier == pytest.approx(1.5)
    draw = Seeds(0).at("noise")
    told = [_told(model, deltas, [], 2, settings, draw) for _ in range(300)]
    for place in range(2 * len(deltas)):
        added = torch.stack([sums[place] for sums, _ in told]).double() / settings.bounds[place // 2]
        assert abs(float(added.std()) / (settings.noise * sqrt(len(deltas))) - 1) < 4 / sqrt(2 * added.numel())
    votes = torch.stack([votes for _, votes in told if votes is not None])
    assert abs(float(votes.std()) / (settings.vote_noise * sqrt(3) / 2) - 1) < 4 / sqrt(2 * votes.numel())
    assert _told(model, deltas, [], 2, Settings(0.1, 1.0, len(deltas)), draw)[1] is None

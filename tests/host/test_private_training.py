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
from trimtab.host.pretrain import Course
from trimtab.host.private import Privacy, example_gradients, tune_privately
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


def test_epsilon_is_the_accountants_for_the_noise_that_was_added(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step's gradient is compared with the clipped sums; what lies between is normal with the deviation accounted for."""
    accountants = pytest.importorskip("opacus.accountants")
    from trimtab.host import private

    model, deltas, rows = begun()
    steps: list[torch.Tensor] = []
    sums, within = private._sums, torch.optim.AdamW.step

    def watched(*given: object) -> list[torch.Tensor]:
        found = sums(*given)  # type: ignore[arg-type]
        steps.append(-torch.cat([one.flatten() for one in found]) / COURSE.batch)
        return found

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

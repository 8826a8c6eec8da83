"""Training learns, is the same every time, and may be killed at any step."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from trimtab.core.errors import DataError, ModelError
from trimtab.core.progress import Progress
from trimtab.host.homegrown import FAMILY, Homegrown, untrained
from trimtab.host.pretrain import STATE, Course, batch_at, train

SMALL = Homegrown(2, 32, 4, 2, 64, 97, Course(steps=20, batch=4, length=16, learning_rate=1e-2))
COURSE = SMALL.course


@pytest.fixture
def stream() -> Tensor:
    """Five words in a loop: whoever reads the last word knows the next."""
    return torch.arange(5).repeat(400) * 7 + 3


def weights(model) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def killed_at(step: int):
    def watch(now: Progress) -> None:
        if now.done == step:
            raise KeyboardInterrupt

    return watch


def test_twenty_steps_lower_the_loss(stream, tmp_path):
    model = untrained(SMALL)
    done = train(model, stream, COURSE, tmp_path / "state")
    assert len(done.losses) == 20
    assert done.losses[0] == pytest.approx(torch.tensor(97.0).log().item(), abs=0.5)  # it begins knowing nothing
    assert done.losses[-1] < done.losses[0] - 1
    assert done.seconds > 0
    assert not model.training


def test_the_same_seed_gives_the_same_weights_and_another_one_others(stream, tmp_path):
    found = []
    for number, seed in enumerate((0, 0, 1)):
        grown = replace(SMALL, course=replace(COURSE, steps=3, seed=seed))
        model = untrained(grown)
        torch.rand(1)  # what the process draws elsewhere plays no part
        train(model, stream, grown.course, tmp_path / str(number))
        found.append(weights(model))
    assert same(found[0], found[1])
    assert not same(found[0], found[2])


def test_steps_are_as_large_as_the_rate_says(stream, tmp_path):
    model = untrained(SMALL)
    seen: list[Tensor] = []
    train(model, stream, COURSE, tmp_path / "state", lambda now: seen.append(model.model.norm.weight.detach().clone()))
    seen.append(model.model.norm.weight.detach())
    moved = [float((after - before).abs().max()) for before, after in pairwise(seen)]
    assert moved[0] == pytest.approx(COURSE.rate(0), rel=0.01)  # the first step of Adam moves by the rate, whatever the gradient
    assert moved[-1] < 3 * COURSE.rate(19) < 0.03 * moved[0]


@pytest.mark.parametrize("step", [1, 5])
def test_a_killed_training_goes_on_to_the_same_weights(step, tmp_path):
    grown = replace(FAMILY["own-2m"], course=Course(steps=6, batch=2, length=32))
    stream = torch.randint(3, grown.vocabulary, (1000,), generator=torch.Generator().manual_seed(0))
    whole, broken, resumed = (untrained(grown) for _ in range(3))
    straight = train(whole, stream, grown.course, tmp_path / "whole", every=2)
    with pytest.raises(KeyboardInterrupt):
        train(broken, stream, grown.course, tmp_path / "state", killed_at(step), every=2)
    assert (tmp_path / "state").exists() == (step > 2)
    begun: list[int] = []
    done = train(resumed, stream, grown.course, tmp_path / "state", lambda now: begun.append(now.done), every=2)
    assert begun == list(range(step // 2 * 2, 6))  # from the last checkpoint, not from the beginning
    assert done.losses == straight.losses
    assert same(weights(resumed), weights(whole))


def test_a_finished_training_is_not_repeated(stream, tmp_path):
    done = train(untrained(SMALL), stream, COURSE, tmp_path / "state")
    again = train(untrained(SMALL), stream, COURSE, tmp_path / "state", killed_at(0))
    assert again.losses == done.losses
    assert again.seconds >= done.seconds


def test_a_damaged_checkpoint_is_refused(stream, tmp_path):
    train(untrained(SMALL), stream, COURSE, tmp_path / "state")
    content = bytearray((tmp_path / "state" / STATE).read_bytes())
    content[-1] ^= 1
    (tmp_path / "state" / STATE).write_bytes(content)
    with pytest.raises(ModelError, match=r"checkpoint .*state cannot be used .*remove it and train from the beginning"):
        train(untrained(SMALL), stream, COURSE, tmp_path / "state")


def test_a_checkpoint_of_another_model_is_refused(stream, tmp_path):
    train(untrained(SMALL), stream, COURSE, tmp_path / "state")
    with pytest.raises(ModelError, match="cannot be used"):
        train(untrained(replace(SMALL, ff=48)), stream, COURSE, tmp_path / "state")


def test_a_loss_that_is_not_finite_stops_the_training(stream, tmp_path):
    model = untrained(SMALL)
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan
    with pytest.raises(ModelError, match="not finite; use a lower learning rate"):
        train(model, stream, COURSE, tmp_path / "state")


def test_a_text_shorter_than_a_batch_is_refused(tmp_path):
    with pytest.raises(DataError, match="the text has 79 tokens, a batch takes 4 windows of 16"):
        train(untrained(SMALL), torch.zeros(79, dtype=torch.int64), COURSE, tmp_path / "state")


def test_a_pass_reads_every_window_once_in_an_order_of_its_own():
    course, stream = Course(steps=100, batch=3, length=8), torch.arange(8 * 13 + 5)
    passes = [torch.stack([batch_at(stream, course, 4 * number + i) for i in range(4)]) for number in range(3)]
    starts = []
    for rows in passes:
        rows = rows.flatten(0, 1)  # [12, 8]
        assert torch.equal(rows, rows[:, :1] + torch.arange(8))
        assert len(rows.unique()) == 12 * 8  # no token twice
        starts.append(rows[:, 0].tolist())
    assert starts[0] != starts[1] != starts[2]
    assert torch.equal(batch_at(stream, course, 5), passes[1][1])
    assert not torch.equal(batch_at(stream, replace(course, seed=1), 5), passes[1][1])


def test_the_rate_rises_then_falls_to_zero():
    course = Course(steps=100, batch=1, learning_rate=0.5)
    rates = [course.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)  # five steps of warm-up
    assert rates[:5] == sorted(rates[:5])
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert 0.4 < max(rates) <= 0.5
    assert 0 < rates[-1] < 0.001
    assert course.tokens == 100 * 512

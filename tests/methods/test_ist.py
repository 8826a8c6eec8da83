"""IST: a step trains few blocks, and blocks that the loss depends on are drawn more often."""

from collections.abc import Iterator

import torch
from torch.optim import AdamW

from trimtab.core.kinds import Seen
from trimtab.core.places import Role, Site
from trimtab.core.seeds import Seeds
from trimtab.formats import Dense
from trimtab.formats.deltas import LowRankDelta
from trimtab.methods.adapt.ist import Importance, Ist

BLOCKS, WEIGHTY = 8, 5


class Course:
    """A training whose loss is lower where the adapter of one block answers in full."""

    steps, learning_rate, seeds = 400, 1e-3, Seeds(0)

    def __init__(self, deltas: list[LowRankDelta]):
        self.deltas = deltas

    def losses(self, step: int) -> Iterator[torch.Tensor]:
        yield torch.tensor(3.0)
        yield torch.tensor(-self.deltas[WEIGHTY].scale / 10)


def begun(made: Ist) -> tuple[Importance, list[LowRankDelta]]:
    deltas = {}
    for block in range(BLOCKS):
        site = Site(f"model.layers.{block}.mlp.down_proj", Role.DOWN, (8, 16), block=block)
        deltas[site] = made.attach(Dense(torch.zeros(8, 16)), Seen({}, Seeds(0).at(block)), site)
    hook = made.hook(deltas)
    hook.begin(Course(list(deltas.values())))  # type: ignore[arg-type]
    return hook, list(deltas.values())


def test_the_block_that_the_loss_depends_on_is_drawn_most() -> None:
    hook, deltas = begun(Ist(rank=2, alpha=2.0, after=0))
    optimizer = AdamW([parameter for delta in deltas for parameter in delta.parameters()])
    for step in range(400):
        hook.before_step(step, optimizer)
    assert int(hook.importance.argmax()) == WEIGHTY
    drawn = [WEIGHTY in hook.drawn(step) for step in range(400)]
    assert sum(drawn) > 2 * 400 * 2 / BLOCKS, "two of eight are drawn at a time"
    assert all(delta.scale == 1.0 for delta in deltas), "what was suppressed answers in full again"


def test_nothing_is_tried_early_or_without_a_pace() -> None:
    for made in (Ist(rank=2, after=401), Ist(rank=2, after=0, pace=0.0)):
        hook, deltas = begun(made)
        optimizer = AdamW([parameter for delta in deltas for parameter in delta.parameters()])
        for step in range(0, 400, 10):
            hook.before_step(step, optimizer)
        assert not hook.importance.any()


def test_a_step_trains_the_drawn_blocks_and_adam_remembers_the_others() -> None:
    hook, deltas = begun(Ist(rank=2))
    optimizer = AdamW([parameter for delta in deltas for parameter in delta.parameters()])
    times = [0] * BLOCKS
    for step in range(12):
        hook.before_step(step, optimizer)
        before = [delta.left.detach().clone() for delta in deltas]
        sum(delta(torch.ones(16), torch.zeros(8), lambda: torch.zeros(8, 16)).sum() for delta in deltas).backward()
        assert {number for number, delta in enumerate(deltas) if delta.left.grad is not None} == set(hook.drawn(step))
        optimizer.step()
        optimizer.zero_grad()
        moved = {number for number, (was, delta) in enumerate(zip(before, deltas, strict=True)) if not was.equal(delta.left)}
        assert moved == set(hook.drawn(step))
        assert len(moved) == 2
        times = [count + (number in moved) for number, count in enumerate(times)]
    assert max(times) > 1
    known = [int(optimizer.state[delta.left]["step"]) if delta.left in optimizer.state else 0 for delta in deltas]
    assert known == times

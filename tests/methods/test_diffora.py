"""DiffoRA: the matrices that the loss depends on get adapters of their own, the rest of a kind share one, and all begin anew."""

from collections.abc import Iterator

import pytest
import torch

from trimtab.core.kinds import Seen
from trimtab.core.places import Role, Site
from trimtab.core.seeds import Seeds
from trimtab.formats import Dense
from trimtab.formats.deltas import LowRankDelta
from trimtab.methods.adapt.diffora import Diffora, Selection

ROLES = (Role.Q, Role.K, Role.O, Role.DOWN)
USEFUL = {(0, Role.Q), (0, Role.DOWN), (1, Role.K), (1, Role.O)}


class Course:
    """A training in which four of eight matrices are to become something; counts the steps whose rows are read."""

    steps, learning_rate, seeds = 200, 1e-2, Seeds(0)

    def __init__(self, deltas: dict[Site, LowRankDelta]):
        self.deltas, self.read = deltas, list[int]()

    def losses(self, step: int) -> Iterator[torch.Tensor]:
        self.read.append(step)
        for site, delta in self.deltas.items():
            made = delta(torch.eye(16), torch.zeros(16, 8), lambda: torch.zeros(8, 16))
            wanted = 1.0 if (site.block, site.role) in USEFUL else 0.0
            yield (made - wanted * torch.ones(16, 8)).square().mean()


def begun(made: Diffora) -> tuple[Selection, Course]:
    sites = [Site(f"model.layers.{block}.{role}", role, (8, 16), block=block) for block in (0, 1) for role in ROLES]
    deltas = {s: made.attach(Dense(torch.zeros(8, 16)), Seen({}, Seeds(0).at(s.name)), s) for s in sites}
    return made.hook(deltas), Course(deltas)


def chosen(hook: Selection) -> set[tuple[int | None, Role]]:
    return {(site.block, site.role) for site, own in zip(hook.sites, hook.own.tolist(), strict=True) if own}


def test_what_the_loss_depends_on_is_chosen() -> None:
    for choose in ("widest", "narrowest", "any"):
        hook, training = begun(Diffora(rank=2, choose=choose))
        hook.begin(training)
        assert len(chosen(hook)) == 4
        if choose != "any":
            assert (chosen(hook) == USEFUL) == (choose == "widest")
        if choose == "narrowest":
            assert not chosen(hook) & USEFUL


def test_adapters_and_gates_never_read_the_same_rows() -> None:
    hook, training = begun(Diffora(rank=2, searched=0.1))
    hook.begin(training)
    assert training.read[::2] == list(range(20))
    assert training.read[1::2] == list(range(20, 40))


def test_all_begin_anew_and_the_rest_of_a_kind_is_one() -> None:
    hook, training = begun(Diffora(rank=2))
    before = {site: delta.right.detach().clone() for site, delta in training.deltas.items()}
    hook.begin(training)
    parameters = {id(p) for delta in hook.deltas for p in (delta.left, delta.right)}
    shared = len({site.role for site in hook.sites if (site.block, site.role) not in USEFUL})
    assert len(parameters) == 2 * (4 + shared)
    for site, delta in training.deltas.items():
        assert delta.scale == 16.0
        assert not delta.left.any()
        if (site.block, site.role) in USEFUL:
            torch.testing.assert_close(delta.right, before[site], rtol=0, atol=0)


def test_what_was_found_is_not_searched_again() -> None:
    hook, training = begun(Diffora(rank=2))
    hook.own.copy_(torch.tensor([1, 0, 0, 0, 1, 0, 0, 0]))
    hook.begin(training)
    assert not training.read
    assert hook.deltas[1].left is hook.deltas[5].left
    assert hook.deltas[1].left is not hook.deltas[2].left


@pytest.mark.parametrize("gates", [torch.zeros(8), torch.arange(8.0) * 100])
def test_gates_of_a_block_are_one_on_average(gates: torch.Tensor) -> None:
    hook, _ = begun(Diffora(rank=2))
    opened = hook.opened(gates)
    torch.testing.assert_close(opened.view(2, 4).mean(1), torch.ones(2))

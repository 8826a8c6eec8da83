"""EWC-LoRA: the Fisher information is that of the matrices themselves, and the penalty weighs the change by it."""

from collections.abc import Iterator

import torch

from trimtab.anatomy import Anatomy
from trimtab.core.recipe import Where
from trimtab.core.seeds import Seeds
from trimtab.engine import adapting
from trimtab.formats.deltas import LowRankDelta
from trimtab.methods.adapt.ewc_lora import EwcLora, Penalty
from trimtab.testing.tiny import tiny, tokens

WINDOWS = 3


class Course:
    """Three windows of general text."""

    def __init__(self, model: torch.nn.Module):
        self.model, self.ids = model, tokens(model)[:1]

    def general(self, windows: int) -> Iterator[torch.Tensor]:
        for shift in range(windows):
            ids = self.ids.roll(shift)
            yield self.model(input_ids=ids, labels=ids).loss


def squares(anatomy: Anatomy, paths: list[str]) -> list[torch.Tensor]:
    """By differentiating the weights themselves."""
    weights = [anatomy.model.get_submodule(path).weight.requires_grad_() for path in paths]
    found = [torch.zeros_like(weight) for weight in weights]
    for loss in Course(anatomy.model).general(WINDOWS):
        for one, gradient in zip(found, torch.autograd.grad(loss, weights), strict=True):
            one += gradient.square()
    mean = sum(float(one.sum()) for one in found) / sum(one.numel() for one in found)
    return [one / mean for one in found]


def begun() -> tuple[Penalty, list[LowRankDelta], list[torch.Tensor]]:
    model = tiny("llama")
    anatomy, made = Anatomy.of(model), EwcLora(rank=4, strength=2.0, windows=WINDOWS)
    deltas = adapting.attach(anatomy, made, Where(only=("*q_proj", "*down_proj")), Seeds(0))
    sites = {site.path: site for site in anatomy.sites}
    hook = made.hook({sites[path]: delta for path, delta in deltas.items()})
    wanted = squares(anatomy, list(deltas))
    with torch.no_grad():
        for delta in hook.changes:
            delta.left.normal_(generator=Seeds(0).at("left"))  # as where a training goes on
    hook.begin(Course(model))  # type: ignore[arg-type]
    return hook, list(hook.changes), wanted


def test_the_fisher_information_is_that_of_the_base() -> None:
    hook, _, wanted = begun()
    assert len(wanted) == len(hook.changes) == 8
    for found, one in zip(hook.fisher, wanted, strict=True):
        torch.testing.assert_close(found, one, rtol=1e-3, atol=1e-4)


def test_the_penalty_is_the_weighed_square_of_the_change_and_pulls_it_back() -> None:
    hook, changes, _ = begun()
    wanted = 2.0 * sum((f.double() * c.change().square()).sum() for f, c in zip(hook.fisher, changes, strict=True))
    torch.testing.assert_close(hook.penalty().double(), wanted, rtol=1e-5, atol=0)
    before = hook.penalty()
    before.backward()
    with torch.no_grad():
        for change in changes:
            assert change.left.grad is not None
            change.left -= 1e-3 * change.left.grad
    assert hook.penalty() < before


def test_nothing_is_looked_at_any_more() -> None:
    _, changes, _ = begun()
    x = torch.ones(2, changes[0].right.shape[1])
    assert changes[0](x, x, lambda: x).any()

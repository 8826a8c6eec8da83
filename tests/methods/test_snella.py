"""Distances have a higher rank than products, thresholds keep what they say, and matrices compete for what survives."""

from types import SimpleNamespace

import torch

from trimtab.core.kinds import Seen
from trimtab.core.places import Role, Site
from trimtab.core.seeds import Seeds
from trimtab.formats import Dense
from trimtab.methods.adapt.snella import DistancesDelta, Snella, shared


def fresh(made: Snella, number: int = 0) -> tuple[Site, DistancesDelta]:
    site = Site(f"model.layers.{number}.mlp.down_proj", Role.DOWN, (24, 32), block=number)
    return site, made.attach(Dense(torch.zeros(24, 32)), Seen({}, Seeds(number).at("x")), site)


@torch.no_grad()
def moved(delta: DistancesDelta, by: float = 0.1) -> None:
    for name, parameter in delta.named_parameters():
        if parameter.requires_grad:
            parameter.add_(by * torch.randn(parameter.shape, generator=Seeds(1).at(name)))


@torch.no_grad()
def test_the_change_is_a_tenth_of_the_difference_of_distances_and_of_high_rank() -> None:
    _, delta = fresh(Snella(rank=4))
    assert not delta.whole().any()
    moved(delta)
    wanted = 0.1 * (torch.cdist(delta.out_points[0], delta.in_points[0]) - torch.cdist(delta.out_points[1], delta.in_points[1]))
    torch.testing.assert_close(delta.change(), wanted, atol=1e-5, rtol=1e-4)
    delta.double()
    assert torch.linalg.matrix_rank(delta.change(), rtol=1e-6) > 3 * 4
    assert sum(p.numel() for p in delta.parameters() if p.requires_grad) == 4 * (24 + 32), "as many as a LoRA of this rank"


def test_a_fresh_one_has_a_gradient() -> None:
    _, delta = fresh(Snella(rank=4))
    x = torch.randn(6, 32, generator=Seeds(0).at("x"))
    delta(x, x, lambda: x).square().add(delta(x, x, lambda: x)).sum().backward()
    assert delta.out_points.grad.any()
    assert delta.out_points.grad.isfinite().all()


@torch.no_grad()
def test_the_largest_survive_in_the_number_that_is_asked_for() -> None:
    _, delta = fresh(Snella(rank=4))
    moved(delta)
    for survivors in (768, 500, 1):
        delta.keep(survivors)
        change = delta.change()
        assert int((change != 0).sum()) == survivors
        if survivors < 768:
            assert change[change != 0].abs().min() > delta.whole()[change == 0].abs().max()


def test_shares_follow_the_scores_and_what_one_cannot_take_goes_to_the_others() -> None:
    assert shared(60, [1.0, 2.0, 3.0], [100, 100, 100]) == [10, 20, 30]
    assert shared(60, [1.0, 1.0, 100.0], [100, 100, 20]) == [20, 20, 20]
    assert shared(30, [0.0, 0.0], [10, 20]) == [10, 20]
    assert shared(25, [0.0, 1.0], [10, 20]) == [5, 20]


def test_the_matrix_that_training_pulls_at_keeps_more_and_fewer_survive_from_threshold_to_threshold() -> None:
    made = Snella(rank=4, sparsity=0.6, every=1)
    deltas = dict(fresh(made, number) for number in range(2))
    hook, (pulled, other) = made.hook(deltas), deltas.values()
    hook.begin(SimpleNamespace(steps=8))
    optimizer = torch.optim.SGD([delta.out_points for delta in deltas.values()], lr=0.0)
    for delta in deltas.values():
        moved(delta)
    alive = []
    for step in range(8):
        hook.before_step(step, optimizer)
        alive.append([int((delta.change() != 0).sum()) for delta in deltas.values()])
        draw = Seeds(step).at("gradient")
        for delta, size in ((pulled, 2.0), (other, 1.0)):
            for parameter in (delta.out_points, delta.in_points):
                parameter.grad = size * torch.randn(parameter.shape, generator=draw)
        hook.after_update(step, optimizer)
    totals = [sum(both) for both in alive]
    assert totals == sorted(totals, reverse=True)
    assert abs(totals[-1] - 0.4 * 2 * 24 * 32) <= 2
    assert alive[-1][0] > alive[-1][1]


def test_what_it_remembers_is_enough_to_go_on() -> None:
    made = Snella(rank=4)
    deltas = dict([fresh(made)])
    hook, again = made.hook(deltas), made.hook(dict([fresh(made)]))
    (delta,) = deltas.values()
    moved(delta)
    delta.out_points.grad, delta.in_points.grad = torch.ones_like(delta.out_points), torch.ones_like(delta.in_points)
    hook.after_update(0, torch.optim.SGD([delta.out_points], lr=0.0))
    hook.compete(0.5)
    for name, value in again.tensors().items():
        with torch.no_grad():
            value.copy_(hook.tensors()[name])
    with torch.no_grad():
        again.deltas[0].out_points.copy_(delta.out_points)
        again.deltas[0].in_points.copy_(delta.in_points)
    assert torch.equal(again.deltas[0].change(), delta.change())
    again.compete(0.9)
    hook.compete(0.9)
    assert torch.equal(again.deltas[0].threshold, delta.threshold)
    assert float(delta.threshold) > 0

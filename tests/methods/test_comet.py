"""COMET: loud channels share the first blocks, which alone have 8 bits, and the order costs nothing by itself."""

import pytest
import torch

from trimtab.core.errors import UsageError
from trimtab.core.places import Role, Site
from trimtab.core.registry import get
from trimtab.formats import Activations, Chain, Dense, Permutation, linear
from trimtab.testing.problems import Layer, layer, seen, solve


def loud(channels: tuple[int, ...] = (3, 40, 90), factor: float = 64.0) -> Layer:
    """A problem whose inputs are of one loudness but for some."""
    problem = layer()
    x = problem.x / problem.x.abs().amax(0)
    x[:, channels] *= factor
    return Layer(problem.weight, x)


@pytest.mark.parametrize(("channels", "blocks"), [((), 0), ((3, 40, 90), 1), (tuple(range(0, 66, 2)), 3)])
def test_loud_channels_fill_the_first_blocks(channels: tuple[int, ...], blocks: int) -> None:
    problem, method = loud(channels), get("comet")(group_size=16)
    shown = seen(method, problem)
    rounding, order = method.solve(Dense(problem.weight), shown, problem.site).factors
    assert isinstance(rounding, Activations)
    assert isinstance(order, Permutation)
    assert (rounding.loud, rounding.group_size, shown.notes["loud_blocks"]) == (blocks, 16, blocks / 8)
    assert set(order.order[: len(channels)].tolist()) == set(channels)


def test_without_outliers_it_is_gptq_in_another_order() -> None:
    problem = layer()
    answer = solve(get("comet")(group_size=0, order="given", outlier=1e9), problem)
    order = problem.x.abs().amax(0).argsort(descending=True, stable=True)
    turned = Layer(problem.weight[:, order], problem.x[:, order])
    wanted = Activations(solve(get("gptq")(bits=4, group_size=0, order="given"), turned), 4, 128)
    assert torch.equal(linear(problem.x, answer), linear(turned.x, wanted))


def test_it_is_nearer_than_four_bits_for_all() -> None:
    problem = loud()
    gptq = solve(get("gptq")(bits=4, group_size=16), problem)
    answers: list[Activations | Chain] = [solve(get("comet")(group_size=16), problem), Activations(gptq, 4, 16)]
    right = problem.x @ problem.weight.T
    lost = [float((linear(problem.x, answer) - right).norm()) for answer in answers]
    assert lost[0] < 0.7 * lost[1]


def test_experts_are_refused() -> None:
    with pytest.raises(UsageError, match="no layer of its own"):
        get("comet")().fits(Site("experts", Role.UP, (8, 64), 0, index=1))

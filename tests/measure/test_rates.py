"""Rates are tried until the best one has others on both sides, or there have been enough."""

from collections.abc import Callable

import pytest
import torch

from trimtab.host.tuned import DivergedError
from trimtab.measure.rates import MORE, Trial, best_trial, next_rate

BEGUN = (3e-4, 1e-3, 3e-3)


def tries(loss: Callable[[float], float]) -> tuple[Trial, list[float]]:
    met: list[float] = []

    def run(rate: float) -> Trial:
        met.append(rate)
        return Trial(loss(rate), torch.tensor([rate], dtype=torch.float64), 32.0)

    return best_trial(BEGUN, run), met


@pytest.mark.parametrize(
    ("best", "more"),
    [(1e-3, []), (1.2e-3, []), (9e-3, [9e-3, 0.027]), (1e-4, [9e-5, 2.7e-5]), (1e-7, [9e-5, 2.7e-5]), (5e-3, [9e-3])],
)
def test_the_sweep_goes_on_where_the_best_is_at_an_end(best: float, more: list[float]) -> None:
    found, met = tries(lambda rate: abs(float(torch.tensor(rate / best).log())))
    assert met == pytest.approx([*BEGUN, *more], rel=0.05)
    assert float(found.losses) == min(met, key=lambda rate: abs(float(torch.tensor(rate / best).log())))


def test_a_rate_that_diverges_is_no_candidate() -> None:
    def run(rate: float) -> Trial:
        if rate > highest:
            raise DivergedError("the loss is not finite")
        return Trial(-rate, torch.tensor([rate]), 32.0)

    highest = 1e-3
    assert best_trial(BEGUN, run).apart == -1e-3
    highest = 0.0
    with pytest.raises(DivergedError, match=r"diverges at every rate of 2.7e-05, 9e-05, 0.0003, 0.001, 0.003"):
        best_trial(BEGUN, run)


def test_it_ends() -> None:
    assert len(tries(lambda rate: -rate)[1]) == len(BEGUN) + MORE
    assert next_rate({1e-3: 5.0}, (1e-3,)) is None, "a single rate stays alone"
    assert next_rate({}, BEGUN) == BEGUN[0]

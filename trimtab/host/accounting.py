"""What a private training has spent, step by step, by opacus' Rényi accountant.

Noise that is fixed beforehand: the best of all orders counts. Noise that is chosen on the way depends on what was told before.
The divergences of the steps may still be added up, and the training stopped before the sum is too large, but of an order that
was chosen beforehand (Feldman and Zrnic, NeurIPS 2021), not of the one that turns out best.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from trimtab.core.errors import UsageError


class Account:
    """Of steps that read every row with this chance. order: the only one that counts; None: the best of all."""

    def __init__(self, chance: float, delta: float, order: float | None = None):
        self.chance, self.delta, self.taken = chance, delta, dict[float, int]()
        self.orders = _rdp().RDPAccountant.DEFAULT_ALPHAS if order is None else [order]
        self.of_a_step: dict[float, Any] = {}

    def take(self, noise: float) -> None:
        """A step with this multiplier."""
        self.taken[noise] = self.taken.get(noise, 0) + 1

    def epsilon(self, one_more: float | None = None) -> float:
        """Spent so far, or with one step more, of this multiplier."""
        return self._spent(one_more)[0]

    @property
    def order(self) -> float:
        """The one that epsilon is told by."""
        return self._spent(None)[1]

    def _spent(self, one_more: float | None) -> tuple[float, float]:
        counts = dict(self.taken)
        if one_more is not None:
            counts[one_more] = counts.get(one_more, 0) + 1
        if not counts:
            return 0.0, float(self.orders[0])
        divergence = sum(count * self._step(noise) for noise, count in counts.items())
        with _unwarned():
            epsilon, order = _rdp().privacy_analysis.get_privacy_spent(orders=self.orders, rdp=divergence, delta=self.delta)
        return float(epsilon), float(order)

    def _step(self, noise: float) -> Any:
        """[orders]"""
        if noise not in self.of_a_step:
            found = _rdp().privacy_analysis.compute_rdp(q=self.chance, noise_multiplier=noise, steps=1, orders=self.orders)
            self.of_a_step[noise] = found
        return self.of_a_step[noise]


def noise_for(epsilon: float, delta: float, chance: float, steps: int) -> float:
    """The multiplier with which so many steps spend no more than epsilon, and hardly less."""
    _rdp()
    from opacus.accountants.utils import get_noise_multiplier

    asked: dict[str, Any] = {"target_epsilon": epsilon, "target_delta": delta, "sample_rate": chance, "steps": steps}
    try:
        with _unwarned():
            return float(get_noise_multiplier(**asked, epsilon_tolerance=0.01 * epsilon))
    except ValueError as error:
        raise UsageError(f"no noise is enough for epsilon {epsilon:g} in {steps} steps; take a larger one, or fewer") from error


def best_order(noise: float, delta: float, chance: float, steps: int) -> float:
    """The order by which so many steps with this multiplier spend least."""
    account = Account(chance, delta)
    account.taken[noise] = steps
    return account.order


@contextmanager
def _unwarned() -> Iterator[None]:
    """Opacus warns wherever the best order is the first or last of a list, also of a list of one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _rdp() -> Any:
    try:
        from opacus.accountants import rdp
    except ImportError as error:
        raise UsageError('opacus is not installed; write pip install "trimtab[private]"') from error
    return rdp

"""A learning rate for every side of its own: three that all begin with, and more where the best lies at an end of those."""

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf

from torch import Tensor

from trimtab.host.tuned import DivergedError

MORE = 2  # rates at most, beyond those to begin with


@dataclass(frozen=True, eq=False)
class Trial:
    """apart: loss on rows held out, nats. losses: of the windows to measure on. bits: per weight of the model."""

    apart: float
    losses: Tensor
    bits: float


def best_trial(begun: Sequence[float], run: Callable[[float], Trial]) -> Trial:
    """That of the rate with the least loss on rows held out. begun: rates, as `next_rate` has them.

    A rate at which the training diverges is no candidate. Raises `DivergedError` where none is left.
    """
    tried: dict[float, float] = {}
    found: dict[float, Trial] = {}
    while (rate := next_rate(tried, begun)) is not None:
        try:
            found[rate] = run(rate)
            tried[rate] = found[rate].apart
        except DivergedError:
            tried[rate] = inf
        gc.collect()  # modules refer to each other in circles
    if not found:
        raise DivergedError(f"the training diverges at every rate of {', '.join(f'{rate:g}' for rate in sorted(tried))}")
    return min(found.values(), key=lambda trial: trial.apart)


def next_rate(tried: Mapping[float, float], begun: Sequence[float]) -> float | None:
    """The next one to try, None where the best is known.

    begun: ascending. tried: rate -> loss. First those to begin with; then, while the best is the highest or the lowest one, and
    `MORE` times at most, one beyond it, as far as its neighbour is on the other side. A single rate stays alone.
    """
    if left := [rate for rate in begun if rate not in tried]:
        return left[0]
    if len(begun) == 1 or len(tried) == len(begun) + MORE:
        return None
    rates, best = sorted(tried), min(tried, key=lambda rate: (tried[rate], rate))
    if best == rates[0]:
        return float(f"{best * rates[0] / rates[1]:.2g}")
    if best == rates[-1]:
        return float(f"{best * rates[-1] / rates[-2]:.2g}")
    return None

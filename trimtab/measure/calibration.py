"""Does a model know when it is right? Expected calibration error: how far confidence lies from the share of right answers.

Predictions are put into bins of equally many by their confidence; the error is the mean distance between the two over bins.
Bins of equal width would leave most of a language model's tokens in one bin. The distance cannot be negative, so what chance
does inside a bin adds to it: a perfect predictor shows about 0.8 sqrt(p (1 - p) bins / n). That is why few predictions get
few bins, and why the errors of two models are best compared at the same n.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from trimtab.core.errors import DataError
from trimtab.core.seeds import Seeds
from trimtab.measure.paired import resampled_counts

MOST_BINS = 15
PER_BIN = 40  # predictions, at the least
RESAMPLES = 500


@dataclass(frozen=True)
class Bin:
    """Predictions with a confidence from low to high: its mean, the share that was right, and how many there are."""

    low: float
    high: float
    confidence: float
    accuracy: float
    n: int


@dataclass(frozen=True)
class Calibration:
    """error: mean distance of confidence and accuracy over the bins. n: predictions."""

    error: float
    stderr: float
    n: int
    bins: tuple[Bin, ...]

    def json(self) -> dict[str, Any]:
        return {"error": self.error, "stderr": self.stderr, "n": self.n, "bins": [asdict(b) for b in self.bins]}


def calibration(confidence: Tensor, right: Tensor, seed: int = 0) -> Calibration:
    """confidence, right: [windows, tokens], or [items]: the probability of the chosen answer, and whether it was right.

    The standard error comes from drawing windows (items) again, with the bins as they are. Raises DataError if there are none.
    """
    if confidence.shape != right.shape or not confidence.numel():
        raise DataError(f"calibration needs a confidence per answer, got {list(confidence.shape)} and {list(right.shape)}")
    confidence, right = (part.double().reshape(len(part), -1).cpu() for part in (confidence, right))
    n = confidence.numel()
    bins = min(MOST_BINS, max(1, n // PER_BIN))
    order = confidence.flatten().argsort(stable=True)
    where = torch.empty(n, dtype=torch.int64)
    where[order] = torch.arange(n) * bins // n
    gap = _by_bin(confidence - right, where, bins)  # [windows, bins]
    error = float(gap.sum(0).abs().sum()) / n
    counts = resampled_counts(len(gap), RESAMPLES, Seeds(seed).at("calibration"))
    spread = (counts @ gap).abs().sum(1) / n  # windows hold equally many predictions, so n stays
    found = (_bin(confidence.flatten()[own], right.flatten()[own]) for own in order.tensor_split(_edges(n, bins)))
    return Calibration(error, float(spread.std()), n, tuple(found))


def _edges(n: int, bins: int) -> list[int]:
    """Where bins 1, 2, ... begin in the order of confidence."""
    return [-(-k * n // bins) for k in range(1, bins)]


def _by_bin(values: Tensor, where: Tensor, bins: int) -> Tensor:
    """[windows, bins]: sums of values [windows, tokens]; where: [windows * tokens], the bin of each."""
    sums = torch.zeros(len(values), bins, dtype=torch.float64)
    return sums.scatter_add_(1, where.view_as(values), values)


def _bin(confidence: Tensor, right: Tensor) -> Bin:
    low, high = confidence.aminmax()
    return Bin(float(low), float(high), float(confidence.mean()), float(right.mean()), len(confidence))

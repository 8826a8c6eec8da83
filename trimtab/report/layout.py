"""From numbers to places on paper: scales, round ticks, the best of a trade-off, and labels that leave each other alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, floor, isfinite, log10

STEPS = (1, 2, 2.5, 5, 10)


@dataclass(frozen=True)
class Scale:
    """low, high: numbers, low < high, both above 0 where `log`. start, end: where they are drawn."""

    low: float
    high: float
    start: float = 0.0
    end: float = 100.0
    log: bool = False

    def __call__(self, value: float) -> float:
        """The place of a number. Numbers outside are drawn at the border."""
        low, high, here = (log10(max(v, 1e-300)) if self.log else v for v in (self.low, self.high, value))
        share = min(max((here - low) / (high - low), 0.0), 1.0)
        return self.start + share * (self.end - self.start)

    def ticks(self, about: int = 4) -> list[float]:
        """Round numbers inside, roughly `about` of them, at least two."""
        return _log_ticks(self.low, self.high, about) if self.log else _ticks(self.low, self.high, about)


def covering(values: Iterable[float], start: float = 0.0, end: float = 100.0, log: bool = False, margin: float = 0.06) -> Scale:
    """The scale that shows all finite values with some room around them. `log` only where all are above 0."""
    known = [v for v in values if isfinite(v)] or [0.0, 1.0]
    low, high = min(known), max(known)
    if log and low > 0:
        room = max(log10(high / low) * margin, 0.02)
        return Scale(low / 10**room, high * 10**room, start, end, log=True)
    room = (high - low) * margin or abs(high) * margin or 1.0
    return Scale(low - room, high + room, start, end)


def spans(values: Iterable[float], factor: float) -> bool:
    """Whether positive values differ by more than this factor, so that a linear scale would crowd the small ones."""
    known = [v for v in values if isfinite(v)]
    return bool(known) and min(known) > 0 and max(known) / min(known) > factor


def _ticks(low: float, high: float, about: int) -> list[float]:
    whole = (high - low) / max(about, 1)
    power = 10.0 ** floor(log10(whole))
    steps = [step * power for step in STEPS if step * power >= whole * 0.999] or [10 * power]
    for step in (steps[0], *(s * power for s in reversed(STEPS) if s * power < steps[0]), power / 2, power / 5):
        found = [round(number * step, 12) + 0.0 for number in range(ceil(low / step - 1e-9), floor(high / step + 1e-9) + 1)]
        if len(found) >= 2:
            return found
    return [low, high]


def _log_ticks(low: float, high: float, about: int) -> list[float]:
    decades = range(floor(log10(low)), ceil(log10(high)) + 1)
    for heads in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        found = [head * 10.0**power for power in decades for head in heads]
        found = [tick for tick in found if low <= tick <= high]
        if len(found) >= min(about, 3):
            return found[:: ceil(len(found) / (about + 2))]
    return _ticks(low, high, about)


def frontier(points: Sequence[tuple[float, float]], lower_is_better: bool) -> list[int]:
    """Which of (size, quality) no other beats in both: their numbers, by size. Of equals the first stays."""
    sign = 1 if lower_is_better else -1
    best, found = float("inf"), []
    for number in sorted(range(len(points)), key=lambda i: (points[i][0], sign * points[i][1], i)):
        if sign * points[number][1] < best:
            best = sign * points[number][1]
            found.append(number)
    return found


@dataclass(frozen=True)
class Box:
    """A rectangle, y downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: Box) -> bool:
        return self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom

    def inside(self, other: Box) -> bool:
        return self.left >= other.left and self.right <= other.right and self.top >= other.top and self.bottom <= other.bottom


def place_labels(
    points: Sequence[tuple[float, float]], widths: Sequence[float], height: float, frame: Box, taken: Sequence[Box] = ()
) -> list[Box | None]:
    """A box for the label of every point: beside, above or below it, inside the frame, on nothing that is there already.

    taken: what else is drawn. None for a label that finds no room: better none than two that cannot be read.
    """
    marks = [Box(x - 6, y - 6, x + 6, y + 6) for x, y in points]
    placed: list[Box | None] = []
    for (x, y), width in zip(points, widths, strict=True):
        busy = [*marks, *taken, *(box for box in placed if box)]
        candidates = (box for box in _around(x, y, width, height) if box.inside(frame))
        placed.append(next((box for box in candidates if not any(box.overlaps(other) for other in busy)), None))
    return placed


def _around(x: float, y: float, width: float, height: float) -> list[Box]:
    """Near first; to the right before to the left, at the side before above and below."""
    found = []
    for gap in (9.0, 16.0, 26.0, 38.0):
        for left in (x + gap, x - gap - width):
            found += [Box(left, y + up - height / 2, left + width, y + up + height / 2) for up in (0.0, -gap, gap)]
        for up in (-gap, gap):
            found += [Box(left, y + up - height / 2, left + width, y + up + height / 2) for left in _slid(x, width)]
    return found


def _slid(x: float, width: float) -> tuple[float, ...]:
    return x - width / 2, x - width * 0.15, x - width * 0.85

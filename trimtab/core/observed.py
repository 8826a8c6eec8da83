"""One side of a claim about what a probe finds: `depth_efficiency: adds, first half`, or a number to compare with.

Before the colon is the probe with its knobs, behind it the name of a finding, and if not all blocks are meant, which half of
those that have the finding (of an odd number the middle one is in neither).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from trimtab.core.errors import UsageError, did_you_mean
from trimtab.core.expression import steps
from trimtab.core.kinds import ProbeMethod

HALVES = ("first half", "second half")
ByBlock = Mapping[int, float]


@dataclass(frozen=True)
class Observed:
    """probe: what looks, None for a number. half: one of `HALVES`, "" for all blocks. value: the number."""

    probe: ProbeMethod | None
    finding: str = ""
    half: str = ""
    value: float = 0.0

    @classmethod
    def of(cls, text: str) -> "Observed":
        """Raises `UsageError` for what is neither a number nor a finding of one probe."""
        head, colon, tail = text.partition(": ")
        if not colon:
            return cls(None, value=_number(text))
        (method, by), *more = steps(head)
        if not isinstance(method, ProbeMethod) or by is not None or more:
            raise UsageError(f"{head!r} in {text!r} is not one probe; write e.g. sensitivity(bits=3): KL")
        finding, comma, half = tail.rpartition(", ")
        return cls(method, finding, half) if comma and half in HALVES else cls(method, tail)

    def of_units(self, found: Mapping[str, ByBlock]) -> dict[int, float]:
        """Value by unit: the number of the block, or its place in the half. found: by finding, values by block.

        Raises `UsageError` where the probe has no such finding, or no block has it.
        """
        if self.finding not in found:
            raise UsageError(f"{self.probe} finds no {self.finding!r}{did_you_mean(self.finding, found)}")
        values = dict(sorted(found[self.finding].items()))
        if self.half:
            size = len(values) // 2
            ranked = [*values.values()]
            values = dict(enumerate(ranked[:size] if self.half == HALVES[0] else ranked[len(ranked) - size :]))
        if not values:
            raise UsageError(f"no block of this model has {self.finding!r} of {self.probe}; use another model")
        return values


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise UsageError(f"{text!r} is neither a number nor PROBE: FINDING; write e.g. sensitivity(bits=3): KL") from error

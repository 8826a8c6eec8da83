"""From a size alone to a recipe: `trimtab compress MODEL --bits 2.75` names no method, so what was measured here decides.

The bits of every matrix are chosen such that the budget is used up and never exceeded (`formats.budgeted`).
"""

from typing import TYPE_CHECKING

from trimtab.core.errors import UsageError
from trimtab.core.expression import make
from trimtab.core.knobs import knobs
from trimtab.core.recipe import Recipe, Step
from trimtab.core.registry import get

if TYPE_CHECKING:
    from trimtab.core.knobs import Knob

BUDGET = "shiftadd_bits"
FEWEST, MOST = 2, 8  # bits that a matrix may get


def goals() -> dict[str, "Knob"]:
    """What may be asked for: name -> what it means and which values are legal."""
    declared = knobs(get(BUDGET))
    return {name: declared[name] for name in ("bits", "size")}


def recipe_for(*, bits: float | None = None, size: str | None = None) -> Recipe:
    """The recipe for one budget. bits: stored bits per weight of the compressed matrices, scales and all else counted; size: of
    all weight files, such as "60MB" or "40%" of what the model takes now.

    Raises `UsageError` unless exactly one is given, or where it is out of range.
    """
    asked = {name: value for name, value in (("bits", bits), ("size", size)) if value is not None}
    if len(asked) != 1:
        raise UsageError(f"one goal at a time, bits or size; given: {' and '.join(asked) or 'none'}")
    budget = make(BUDGET, {"low": FEWEST, "high": MOST, **asked})
    return Recipe((Step(make("gptq", {"clip": True}), by=budget),))  # type: ignore[arg-type]

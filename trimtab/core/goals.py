"""From a size alone to recipes: `trimtab compress MODEL --bits 2.75` names no method, so what was measured here decides.

Every matrix gets the most bits that all of them can have, or one more, such that the budget is used up and never exceeded
(`formats.budgeted`). Wider mixtures lose: 2, 3 and 4 bit at the size of 3 everywhere cost 0.76 nats (`shiftadd_bits`' claims).
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


def recipes_for(*, bits: float | None = None, size: str | None = None) -> list[Recipe]:
    """Recipes for one budget, the one to be preferred first; not all of them can meet it, and which depends on the model.

    bits: stored bits per weight of the compressed matrices, scales and all else counted; size: of all weight files, such as
    "60MB" or "40%" of what the model takes now. Raises `UsageError` unless exactly one is given, or where it is out of range.
    """
    asked = {name: value for name, value in (("bits", bits), ("size", size)) if value is not None}
    if len(asked) != 1:
        raise UsageError(f"one goal at a time, bits or size; given: {' and '.join(asked) or 'none'}")
    budgets = [make(BUDGET, {"low": low, "high": low + 1, **asked}) for low in range(MOST - 1, FEWEST - 1, -1)]
    return [Recipe((Step(make("gptq", {"clip": True}), by=budget),)) for budget in budgets]  # type: ignore[arg-type]

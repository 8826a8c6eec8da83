"""From a goal alone to recipes: `trimtab compress MODEL --bits 2.75` names no method, so what was measured decides.

A budget (bits, size) is met to the byte: every matrix gets the most bits that all of them can have, or one more, such that the
budget is used up and never exceeded (`formats.budgeted`). Wider mixtures lose: 2, 3 and 4 bit at the size of 3 everywhere cost
0.76 nats (`shiftadd_bits`' claims). The other goals (speedup, fit, max_ppl_increase) choose among the shipped recipes by what
each was measured to cost (`core.shipped`), and by what it would take of the model at hand (`host.goals`).
"""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trimtab.core.errors import UsageError
from trimtab.core.expression import make
from trimtab.core.knobs import Knob, knobs
from trimtab.core.recipe import Recipe, Step
from trimtab.core.registry import get
from trimtab.core.sizes import in_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

BUDGET = "shiftadd_bits"
FEWEST, MOST = 2, 8  # bits that a matrix may get


def _factor(said: str) -> float:
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)x?", said)
    if found is None or float(found[1]) <= 1:
        raise ValueError(f"{said!r} is no speedup; write e.g. 2x")
    return float(found[1])


def _bytes(said: str) -> float:
    if "%" in said:
        raise ValueError(f"{said!r} is no amount of memory; write e.g. 2GiB, or --size {said} for a share of the files")
    return float(in_bytes(said, 0))


def _share(said: str) -> float:
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*%", said)
    if found is None or float(found[1]) <= 0:
        raise ValueError(f"{said!r} is no increase; write e.g. 3%")
    return float(found[1]) / 100


WORDS: dict[str, tuple[str, "Callable[[str], float]"]] = {
    "speedup": ("how many times faster it is to answer, such as 2x", _factor),
    "fit": ("memory that it is to answer in, conversation included, such as 2GiB", _bytes),
    "max_ppl_increase": ("by how much the perplexity may grow, such as 3%", _share),
}


@dataclass(frozen=True)
class Goal:
    """What shipped recipes are chosen for. value: a factor (speedup), bytes (fit) or a fraction (max_ppl_increase)."""

    name: str
    said: str

    def __post_init__(self) -> None:
        try:
            WORDS[self.name][1](self.said)
        except ValueError as error:
            raise UsageError(f"{self.option}: {error}") from error

    @property
    def value(self) -> float:
        return WORDS[self.name][1](self.said)

    @property
    def option(self) -> str:
        return "--" + self.name.replace("_", "-")

    def __str__(self) -> str:
        return f"{self.option} {self.said}"


def goals() -> dict[str, Knob]:
    """What may be asked for: name -> what it means and which values are legal."""
    declared = knobs(get(BUDGET))
    budgets = {name: declared[name] for name in ("bits", "size")}
    return budgets | {name: Knob(help, str, parse=parse) for name, (help, parse) in WORDS.items()}


def asked_for(values: dict[str, Any]) -> Goal | list[Recipe]:
    """The one goal among values by name: a `Goal`, or where it is a budget the recipes for it (see `recipes_for`).

    Raises `UsageError` unless exactly one is given, or where it is out of range.
    """
    if len(values) == 1 and (name := next(iter(values))) in WORDS:
        return Goal(name, str(values[name]))
    return recipes_for(**values)


def recipes_for(*, bits: float | None = None, size: str | None = None, **others: Any) -> list[Recipe]:
    """Recipes for one budget, the one to be preferred first; not all of them can meet it, and which depends on the model.

    bits: stored bits per weight of the compressed matrices, scales and all else counted; size: of all weight files, such as
    "60MB" or "40%" of what the model takes now; others: goals that are no budget, of which there may be none. Raises
    `UsageError` unless exactly one is given, or where it is out of range.
    """
    asked = {name: value for name, value in (("bits", bits), ("size", size)) if value is not None}
    given = [*asked, *(name.replace("_", "-") for name in others)]
    if len(given) != 1:
        known = ", ".join(name.replace("_", "-") for name in goals())
        raise UsageError(f"one goal at a time ({known}); given: {' and '.join(given) or 'none'}")
    budgets = [make(BUDGET, {"low": low, "high": low + 1, **asked}) for low in range(MOST - 1, FEWEST - 1, -1)]
    return [Recipe((Step(make("gptq", {"clip": True}), by=budget),)) for budget in budgets]  # type: ignore[arg-type]

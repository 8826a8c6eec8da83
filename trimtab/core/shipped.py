"""The recipes that come with the package, by name, and what each was measured to cost (`recipes/measured.jsonl`).

The lines are written by `benchmarks/recipes.py`, and nowhere else: a goal is met by what was measured, not by what was hoped.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from trimtab.core.errors import RecipeError, did_you_mean
from trimtab.core.recipe import Recipe

ROOM = Path(__file__).parents[1] / "recipes"
MEASURED = ROOM / "measured.jsonl"


@dataclass(frozen=True)
class Measured:
    """A shipped recipe on the model of the claims. perplexity: one per seed, a single one where seeds change nothing.

    base: of the model as it came; bits: stored per weight of the blocks; windows: of text, on which every perplexity was taken.
    """

    name: str
    steps: str
    bits: float
    perplexity: tuple[float, ...]
    base: float
    windows: int
    model: str

    @property
    def increase(self) -> float:
        """Of the perplexity, mean over seeds, as a fraction of what it was."""
        return sum(self.perplexity) / len(self.perplexity) / self.base - 1

    @property
    def recipe(self) -> Recipe:
        return read(self.name)


def names() -> list[str]:
    """Of all shipped recipes."""
    return sorted(file.stem for file in ROOM.glob("*.yaml"))


def read(name: str) -> Recipe:
    """The shipped recipe of this name. Raises `RecipeError` with the nearest name if there is none."""
    if name not in names():
        raise RecipeError(f"there is no recipe {name!r}{did_you_mean(name, names())}")
    return Recipe.read(ROOM / f"{name}.yaml")


def found(name: str) -> Recipe:
    """The recipe in a file, or where there is no such file the shipped one of this name. Raises `RecipeError`."""
    if not Path(name).exists() and name in names():
        return read(name)
    if Path(name).suffix not in (".yaml", ".yml") and not Path(name).exists():
        raise RecipeError(f"there is no recipe file {name}, and no recipe of this name{did_you_mean(name, names())}")
    return Recipe.read(name)


@cache
def measured() -> tuple[Measured, ...]:
    """Every shipped recipe that was measured, the one that loses least first."""
    rows = [json.loads(row) for row in MEASURED.read_text(encoding="utf-8").splitlines()]
    found = (_measured(row) for row in rows)
    return tuple(sorted(found, key=lambda one: one.increase))


def _measured(row: dict[str, Any]) -> Measured:
    perplexity = tuple(row["perplexity"])
    return Measured(row["recipe"], row["steps"], row["bits"], perplexity, row["base"], row["n"], row["setting"]["model"])

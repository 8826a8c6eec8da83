"""receipt.json: what was done to a model, place by place, and what it was shown."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from math import isfinite, nan
from typing import Any

from trimtab.report.reading import Node

NUMBER = re.compile(r"\.(\d+)(?:\.|$)")


@dataclass(frozen=True)
class Line:
    """One step in one place, as the engine wrote it. error: NaN where nothing was seen."""

    step: int
    method: str
    place: str
    weights: int
    bits_before: float
    bits_after: float
    seconds: float
    error: float
    damping: float


@dataclass(frozen=True)
class Cell:
    """What the last step left in one kind of matrix of one block. Experts of a block are one cell, by weights."""

    block: int
    matrix: str
    bits: float
    error: float
    places: int


@dataclass(frozen=True)
class Step:
    """One step over all its places; means are by weights."""

    method: str
    places: int
    bits_before: float
    bits_after: float
    error: float
    seconds: float


@dataclass(frozen=True)
class Curve:
    """A training. losses: nats per learned token, of every step before it was taken. validations: (steps taken, loss)."""

    method: str
    rows: int
    losses: tuple[float, ...]
    validations: tuple[tuple[int, float], ...]
    best: int
    seconds: float

    @property
    def is_drawable(self) -> bool:
        return any(isfinite(loss) for loss in (*self.losses, *(loss for _, loss in self.validations)))


@dataclass(frozen=True)
class Record:
    """The receipt of a folder. raised: (place, damping asked for, damping used). learned: trainings, the first one first."""

    model: str
    recipe: dict[str, Any]
    steps: tuple[Step, ...]
    cells: tuple[Cell, ...]
    raised: tuple[tuple[str, float, float], ...]
    profile: dict[str, float]
    notes: tuple[str, ...]
    peak_memory: int
    seeded: bool
    shown: dict[str, Any]
    made: dict[str, Any]
    learned: tuple[Curve, ...] = ()


def record(node: Node) -> Record:
    """Raises `UsageError` that names the field where one is not of its type."""
    lines = [_line(part) for part in node.nodes("receipts")]
    recipe, profile = node.plain("recipe"), node.part("profile")
    return Record(
        node.text("model"),
        recipe,
        tuple(_step(found) for found in _by_step(lines).values()),
        tuple(_cells(lines)),
        tuple(_raised(lines, recipe)),
        {name: profile.number(name) for name in profile.fields},
        node.texts("notes"),
        node.count("peak_memory"),
        node.fields.get("seeded") is not False,
        node.plain("shown"),
        node.plain("made"),
        tuple(_curve(part) for part in node.nodes("learned")),
    )


def _curve(node: Node) -> Curve:
    validations = tuple((one.count("step"), one.number("loss")) for one in node.nodes("validations"))
    numbers = node.count("best"), node.number("seconds")
    return Curve(node.text("method"), node.count("rows"), node.numbers("losses"), validations, *numbers)


def _line(node: Node) -> Line:
    bits = node.number("bits_before"), node.number("bits_after")
    damping = node.part("notes").number("damping") if "damping" in node.plain("notes") else nan
    return Line(
        node.count("step"),
        node.text("method"),
        node.text("place"),
        node.count("weights"),
        *bits,
        node.number("seconds"),
        node.number("error"),
        damping,
    )


def _by_step(lines: list[Line]) -> dict[int, list[Line]]:
    groups: dict[int, list[Line]] = defaultdict(list)
    for line in lines:
        groups[line.step].append(line)
    return dict(sorted(groups.items()))


def _step(lines: list[Line]) -> Step:
    return Step(
        lines[0].method,
        len(lines),
        _mean(lines, [line.bits_before for line in lines]),
        _mean(lines, [line.bits_after for line in lines]),
        _mean(lines, [line.error for line in lines]),
        sum(line.seconds for line in lines if isfinite(line.seconds)),
    )


def _mean(lines: list[Line], values: list[float]) -> float:
    """By weights, over the values that are known; NaN if none is."""
    known = [(max(line.weights, 1), value) for line, value in zip(lines, values, strict=True) if isfinite(value)]
    whole = sum(weights for weights, _ in known)
    return sum(weights * value for weights, value in known) / whole if known else nan


def _cells(lines: list[Line]) -> list[Cell]:
    last = {line.place: line for found in _by_step(lines).values() for line in found}
    groups: dict[tuple[int, str], list[Line]] = defaultdict(list)
    for place, line in last.items():
        if number := NUMBER.search(place):
            groups[int(number[1]), _matrix(place[number.end() :])].append(line)
    short = _shortened({matrix for _, matrix in groups})
    return [_cell(block, short[matrix], group) for (block, matrix), group in groups.items()]


def _cell(block: int, matrix: str, lines: list[Line]) -> Cell:
    bits, error = _mean(lines, [line.bits_after for line in lines]), _mean(lines, [line.error for line in lines])
    return Cell(block, matrix, bits, error, len(lines))


def _matrix(rest: str) -> str:
    """`mlp.experts.down_proj.17` -> `mlp.experts.down`."""
    return ".".join(part.removesuffix("_proj") for part in rest.split(".") if part and not part.isdigit()) or "block"


def _shortened(names: set[str]) -> dict[str, str]:
    """Each name's shortest ending, in whole parts, that no other name ends in."""
    short = {}
    for name in names:
        parts = name.split(".")
        endings = [".".join(parts[start:]) for start in reversed(range(len(parts)))]
        others = names - {name}
        short[name] = next((e for e in endings if not any(f".{other}".endswith(f".{e}") for other in others)), name)
    return short


def _raised(lines: list[Line], recipe: dict[str, Any]) -> list[tuple[str, float, float]]:
    steps = recipe.get("steps")
    asked = [_damping(step) for step in steps] if isinstance(steps, list) else []
    found = []
    for line in lines:
        wanted = asked[line.step - 1] if 0 < line.step <= len(asked) else nan
        if line.damping > wanted:  # False where either is unknown
            found.append((line.place, wanted, line.damping))
    return found


def _damping(step: Any) -> float:
    """What the method of a step was told; NaN if it has no such knob."""
    named = step.items() if isinstance(step, dict) else ()
    knobs = [value for name, value in named if name not in ("where", "by") and isinstance(value, dict)]
    value = knobs[0].get("damping") if knobs else None
    return float(value) if isinstance(value, float) else nan

"""Whose state is this? What a job depends on, field by field, and which differences it can bear.

Equal versions would be the simple rule, and the wrong one: days of work would be void after any update. So every field says
what a difference means. Where the result would be another one, going on is refused and the field is named. Where only the last
bits could differ, because other code computes the same, the run goes on and its report says so.
"""

import ast
import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any
from uuid import uuid4

from torch import Tensor, cat

from trimtab import kernels
from trimtab.core.errors import UsageError
from trimtab.core.kinds import Method
from trimtab.core.recipe import Recipe
from trimtab.host.fingerprint import fingerprint
from trimtab.host.provenance import machine, versions

FORMAT = 1


class Bears(Enum):
    """What a difference in a field means."""

    REFUSED = "another result"
    NOTED = "the last bits may differ"
    FREE = "no difference"


# By field, or the beginning of its dotted name; the longest that fits counts.
RULES: dict[str, tuple[Bears, str]] = {
    "format": (Bears.REFUSED, "how the state is written"),
    "model": (Bears.REFUSED, "SHA-256 over the model's files"),
    "bases": (Bears.REFUSED, "the same of other models that the recipe names"),
    "recipe": (Bears.REFUSED, "steps, knobs, where, seed, calibration"),
    "recipe.calibration.text": (Bears.FREE, "what the text is called; its tokens count"),
    "tokens": (Bears.REFUSED, "SHA-256 over the calibration tokens"),
    "methods": (Bears.REFUSED, "code of the recipe's methods, comments left out"),
    "to": (Bears.REFUSED, "what is exported to"),
    "requantize": (Bears.REFUSED, "--requantize"),
    "writer": (Bears.REFUSED, "code of that format, comments left out"),
    "dtype": (Bears.REFUSED, "--dtype"),
    "packed": (Bears.REFUSED, "--packed"),
    "device": (Bears.REFUSED, "cpu, cuda, ..."),
    "versions": (Bears.NOTED, "trimtab, torch, transformers"),
    "machine": (Bears.NOTED, "kind of processor, threads, compiled kernels"),
}


def identity(
    folder: str | Path,
    bases: Mapping[str, str],
    recipe: Recipe,
    batches: Sequence[Tensor],
    dtype: Any,
    packed: bool,
    device: Any,
) -> dict[str, Any]:
    """JSON by field of `RULES`. folder, bases: where the files of the model, and of others by name, are."""
    return {
        "format": FORMAT,
        "model": fingerprint(folder),
        "bases": {name: fingerprint(place) for name, place in bases.items()},
        "recipe": recipe.to_dict(),
        "tokens": hashlib.sha256(cat(list(batches)).cpu().numpy().tobytes()).hexdigest(),
        "methods": {m.card.id: code_of(type(m)) for step in recipe.steps for m in (step.method, step.by) if m is not None},
        "dtype": str(dtype),
        "packed": packed,
        "device": str(device or "cpu"),
        "versions": versions(),
        "machine": _machine(),
    }


def identity_of_export(folder: str | Path, to: str, requantize: str | None, writer: Callable[..., Any]) -> dict[str, Any]:
    """The same of an export of the model in a folder. writer: a function of the file that writes the format."""
    asked = {"to": to, "requantize": requantize, "writer": code_of(writer)}
    return {"format": FORMAT, "model": fingerprint(folder), **asked, "versions": versions(), "machine": _machine()}


def _machine() -> dict[str, Any]:
    return {**machine(), "kernels": kernels.instruction_set() if kernels.available() else "none"}


def code_of(thing: type[Method] | Callable[..., Any]) -> str:
    """SHA-256, in hex, of the code of the file that a method is in; of one that was typed in, a number that never comes again."""
    try:
        source = inspect.getsource(inspect.getmodule(thing) or thing)
    except (OSError, TypeError):  # no file: whether it is the same code in another process cannot be known
        return f"typed in: {uuid4().hex}"
    return hashlib.sha256(ast.unparse(ast.parse(source)).encode()).hexdigest()


def compatible(kept: Mapping[str, Any], now: Mapping[str, Any], where: Path) -> list[str]:
    """Notes on differences that can be borne. Raises `UsageError` naming the first field of the others."""
    notes = []
    for field, before, after in _differences(kept, now):
        bears, _ = RULES[max((rule for rule in RULES if (field + ".").startswith(rule + ".")), key=len, default="format")]
        if bears is Bears.REFUSED:
            raise UsageError(
                f"{where} was left by another job: {field} was {before!s:.80}, now it is {after!s:.80}; "
                "repeat the command that was stopped, or start over with --fresh"
            )
        if bears is Bears.NOTED:
            notes.append(f"begun with {field} {before}, resumed with {after}: the last bits may differ from an undisturbed run")
    return notes


def _differences(kept: Any, now: Any) -> list[tuple[str, Any, Any]]:
    before, after = dict(_flat(kept)), dict(_flat(now))
    names = [*after, *(n for n in before if n not in after)]
    missing = "not there"
    return [(n, before.get(n, missing), after.get(n, missing)) for n in names if before.get(n, missing) != after.get(n, missing)]


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of everything that is in a JSON value."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flat(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple) and value:
        for number, item in enumerate(value):
            yield from _flat(item, f"{name}.{number}")
    else:
        yield name, list(value) if isinstance(value, tuple) else value

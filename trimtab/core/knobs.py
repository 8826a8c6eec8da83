"""Hyperparameters declare themselves: range, default and one line of help, next to the field.

A method is a frozen dataclass whose fields are made with these functions. The declaration is the YAML schema, the command
line option, the documentation and the check; there is no second place to keep in step.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, field, fields
from math import inf
from typing import Any

from trimtab.core.errors import UsageError

LARGEST = 10**300  # of whole numbers that are taken for a real one


@dataclass(frozen=True)
class Knob:
    """The declaration behind one field. `low` and `high` are inclusive; `options` closes the set of values."""

    help: str
    type: type
    low: float | None = None
    high: float | None = None
    options: tuple[Any, ...] = ()
    parse: Callable[[Any], Any] | None = None

    def range(self) -> str:
        """The legal values in words, for help texts and errors."""
        if self.options:
            return "one of " + ", ".join(map(str, self.options))
        if self.low is None and self.high is None:
            return f"any {self.type.__name__}"
        if self.high is None:
            return f"at least {self.low:g}"
        return f"{self.low:g} to {self.high:g}"


def _knob(default: Any, knob: Knob) -> Any:
    return field(default=default, metadata={"knob": knob})


def rate(help: str, default: float, low: float = 0.0, high: float = 1.0) -> Any:
    """A fraction."""
    return _knob(default, Knob(help, float, low, high))


def number(help: str, default: float, low: float | None = None, high: float | None = None) -> Any:
    """A real number."""
    return _knob(default, Knob(help, float, low, high))


def count(help: str, default: int, low: int = 1, high: int | None = None) -> Any:
    """A whole number."""
    return _knob(default, Knob(help, int, low, high))


def choice(help: str, default: Any, options: Sequence[Any]) -> Any:
    """One value of a closed set; all options have the type of the default."""
    return _knob(default, Knob(help, type(default), options=tuple(options)))


def flag(help: str, default: bool) -> Any:
    """Yes or no."""
    return _knob(default, Knob(help, bool))


def text(help: str, default: str, parse: Callable[[Any], Any]) -> Any:
    """A string with a grammar; `parse` raises ValueError on a bad one (its value is thrown away)."""
    return _knob(default, Knob(help, str, parse=parse))


def model(help: str) -> Any:
    """The name of another model, nothing by default. Its owner needs `Reference`."""
    return text(help, "", _model_name)


def _model_name(value: str) -> None:
    if not re.fullmatch(r"[\w./\\:~@+ -]*", value):
        raise ValueError(f"{value!r} names no model; give a folder, a hub name or asset:NAME")


def knobs(owner: Any) -> dict[str, Knob]:
    """The declared knobs of a method class or instance, in order. Raises TypeError on a field without one."""
    found = {}
    for f in fields(owner):
        if "knob" not in f.metadata:
            raise TypeError(f"{owner}: field {f.name!r} is not declared with rate/number/count/choice/flag/text")
        found[f.name] = f.metadata["knob"]
    return found


def defaults(owner: Any) -> dict[str, Any]:
    """Default value of every knob."""
    return {f.name: f.default for f in fields(owner) if f.default is not MISSING}


def checked(owner: str, name: str, knob: Knob, value: Any) -> Any:
    """`value` as the knob's type, or `UsageError` naming the owner, the field, the value and the legal range."""
    if knob.type is bool or isinstance(value, bool):
        if not (knob.type is bool and isinstance(value, bool)):
            raise UsageError(f"{owner}: {name} must be {_kind(knob)}, got {value!r:.80}")
        return value
    if knob.type is float and isinstance(value, int):
        value = float(value) if abs(value) < LARGEST else inf
    if not isinstance(value, knob.type):
        raise UsageError(f"{owner}: {name} must be {_kind(knob)}, got {value!r:.80}")
    if knob.options and value not in knob.options:
        raise UsageError(f"{owner}: {name} must be {knob.range()}, got {value!r:.80}")
    low, high = -inf if knob.low is None else knob.low, inf if knob.high is None else knob.high
    # Written so that NaN fails: it compares false with everything.
    if isinstance(value, int | float) and not low <= value <= high:
        raise UsageError(f"{owner}: {name} must be {knob.range()}, got {value!r:.80}")
    if knob.parse is not None:
        try:
            knob.parse(value)
        except ValueError as error:
            raise UsageError(f"{owner}: {name}: {error}") from error
    return value


def _kind(knob: Knob) -> str:
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[knob.type]

"""JSON from outside, read field by field: what is wrong is named with its place, and nothing else in the room checks types."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite, nan
from pathlib import Path
from typing import Any

from trimtab.core.errors import UsageError

LARGEST = 1 << 26  # bytes
LARGEST_NUMBER = 1e300
# Control characters, what turns the direction of writing, and halves of characters.
UNSHOWN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass(frozen=True)
class Node:
    """A JSON object and where it stands: `comparison.json: others[1].against_base`."""

    fields: dict[str, Any]
    place: str

    def text(self, key: str) -> str:
        """Empty where there is none."""
        return shown(self._typed(key, str, "text") or "")

    def number(self, key: str) -> float:
        """NaN where there is none: JSON has no NaN, so a number that could not be had is written as null."""
        value = self._typed(key, int | float, "a number")
        return float(value) if value is not None and abs(value) < LARGEST_NUMBER else nan

    def count(self, key: str) -> int:
        """0 where there is none."""
        value = self.number(key)
        return int(value) if isfinite(value) else 0

    def node(self, key: str) -> Node | None:
        fields = self._typed(key, dict, "an object")
        return None if fields is None else Node(fields, self._at(key))

    def part(self, key: str) -> Node:
        """Like `node`, empty where there is none."""
        return self.node(key) or Node({}, self._at(key))

    def nodes(self, key: str) -> list[Node]:
        """The objects of a list."""
        values = self._typed(key, list | tuple, "a list") or []
        return [_object(value, f"{self._at(key)}[{number}]") for number, value in enumerate(values)]

    def named(self, key: str) -> Iterator[tuple[str, Node]]:
        """The objects of an object."""
        for name, value in (self._typed(key, dict, "an object") or {}).items():
            yield shown(name), _object(value, f"{self._at(key)}.{name}")

    def texts(self, key: str) -> tuple[str, ...]:
        values = self._typed(key, list | tuple, "a list") or []
        if not all(isinstance(value, str) for value in values):
            raise UsageError(f"{self._at(key)} must hold texts only")
        return tuple(values)

    def numbers(self, key: str) -> tuple[float, ...]:
        """NaN where one is null."""
        values = self._typed(key, list | tuple, "a list") or []
        return tuple(Node({key: value}, self.place).number(key) for value in values)

    def plain(self, key: str) -> dict[str, Any]:
        """An object as it is, {} where there is none."""
        return self._typed(key, dict, "an object") or {}

    def _typed(self, key: str, kind: Any, words: str) -> Any:
        value = self.fields.get(key)
        if value is None or (isinstance(value, kind) and not isinstance(value, bool)):
            return value
        raise UsageError(f"{self._at(key)} must be {words}, got {value!r:.60}")

    def _at(self, key: str) -> str:
        return f"{self.place}: {key}" if ": " not in self.place else f"{self.place}.{key}"


def shown(text: str) -> str:
    """The text as far as it can be shown."""
    return UNSHOWN.sub("\N{REPLACEMENT CHARACTER}", text)


def read_json(path: Path) -> Node:
    """A file with one JSON object of at most 64 MB. Raises `UsageError`, one line that names the file."""
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"larger than {LARGEST} bytes")
        return _object(json.loads(path.read_text(encoding="utf-8")), str(path))
    except FileNotFoundError as error:
        raise UsageError(f"there is no file {path}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} is damaged or no JSON ({error}); write it again") from error


def _object(value: Any, place: str) -> Node:
    if not isinstance(value, dict):
        raise UsageError(f"{place} must be an object, got {value!r:.60}")
    return Node(value, place)

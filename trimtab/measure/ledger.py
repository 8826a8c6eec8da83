"""The ledger: every result of every claim, one JSON object a line, appended and never edited.

A line is on the disk when `append` returns, and two processes never write at the same time. A line that was cut off while it
was written (a full disk, a pulled plug) is named when the ledger is read; whatever is appended later starts on a line of its own.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from trimtab.core.errors import UsageError
from trimtab.host.locks import alone_in

NEEDED = ("method", "claim", "status")
CURE = "remove this line and run its claim again, or restore it from version control; all other lines are untouched"
Line = Mapping[str, Any]


def append(line: Line, ledger: Path) -> None:
    """One JSON object, one line, at the end of the file."""
    ledger.parent.mkdir(parents=True, exist_ok=True)
    with ledger.open("ab+") as file, alone_in(file):
        start = b"" if _ends_a_line(file) else b"\n"
        file.write(start + json.dumps(line).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _ends_a_line(file: Any) -> bool:
    if file.seek(0, os.SEEK_END) == 0:
        return True
    file.seek(-1, os.SEEK_END)
    return bool(file.read(1) == b"\n")


def read(ledger: Path) -> list[dict[str, Any]]:
    """All lines, oldest first; none if there is no such file. Raises `UsageError` that says which line is damaged and how."""
    if not ledger.exists():
        return []
    rows = enumerate(ledger.read_bytes().split(b"\n"), 1)
    return [_entry(row, f"{ledger}:{number}") for number, row in rows if row.strip()]


def _entry(row: bytes, place: str) -> dict[str, Any]:
    try:
        entry: dict[str, Any] = json.loads(row)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{place} is damaged, perhaps cut off while it was written ({error}); {CURE}") from error
    if not isinstance(entry, dict) or any(name not in entry for name in NEEDED):
        raise UsageError(f"{place} is no result of a claim, which has {', '.join(NEEDED)}; {CURE}")
    return entry


def latest(lines: Iterable[Line]) -> dict[tuple[str, str], Line]:
    """The last result of every (method, claim)."""
    return {(line["method"], line["claim"]): line for line in lines}

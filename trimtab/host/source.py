"""`source.json`: where a model in the cache comes from, and what has to be said with every result on it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SOURCE = "source.json"


def record(folder: Path, content: Mapping[str, Any]) -> None:
    """Written beside the model. content: at least a `note`."""
    (folder / SOURCE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def recorded(folder: Path) -> dict[str, Any]:
    """What was written; empty for a folder that says nothing."""
    path = folder / SOURCE
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def history(folder: Path) -> str | None:
    """What happened to a model's weights before we got them, in a sentence; None if nothing is known."""
    note: str | None = recorded(folder).get("note")
    return note

"""What a folder of results holds: models, recipes, comparisons, and the document that is made of them.

Numbers of different comparisons stand for different texts and are never mixed: one comparison is shown at a time, and a result
that is not in it has its size and its receipt only. So has one that was written anew since.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from trimtab.core.errors import UsageError
from trimtab.report import from_folders, parse
from trimtab.report.document import Document, Model, document
from trimtab.report.folders import bases, receipt_of
from trimtab.report.reading import Node, read_json
from trimtab.ui.places import Places, is_model

COMPARISON = "comparison.json"  # what a measurement that was started here writes
LARGEST = 1 << 26  # bytes of a comparison


@dataclass(frozen=True)
class Shelf:
    """A folder, looked at once. results: model folders, the newest first; folders: where else one could look."""

    folder: Path
    results: tuple[Path, ...]
    folders: tuple[Path, ...]
    recipes: tuple[Path, ...]
    comparisons: tuple[Path, ...]

    @classmethod
    def of(cls, folder: Path) -> Shelf:
        """A model's own folder is a shelf with one result. Raises `UsageError` if it cannot be read."""
        if is_model(folder):
            return cls(folder, (folder,), (), (), ())
        try:
            there = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        except OSError as error:
            raise UsageError(f"cannot read {folder}: {error.strerror}") from error
        inside = [path for path in there if path.is_dir() and path.resolve().is_relative_to(folder.resolve())]
        models = [path for path in inside if is_model(path)]
        return cls(
            folder,
            tuple(sorted(models, key=lambda path: -path.stat().st_mtime)),
            tuple(path for path in inside if path not in models and not path.name.startswith("_")),
            tuple(path for path in there if path.suffix in (".yaml", ".yml") and path.is_file()),
            tuple(sorted(_comparisons(there), key=lambda path: -path.stat().st_mtime)),
        )


def _comparisons(there: Sequence[Path]) -> Iterator[Path]:
    for path in there:
        if path.suffix == ".json" and path.is_file() and not path.is_symlink() and _comparison(path) is not None:
            yield path


def _comparison(path: Path) -> dict[str, Any] | None:
    """None for a JSON file that is none."""
    stat = path.stat()
    return _read(path, stat.st_mtime_ns, stat.st_size) if stat.st_size <= LARGEST else None


@lru_cache(16)
def _read(path: Path, changed: int, size: int) -> dict[str, Any] | None:
    """Once per state of the file."""
    try:
        node = read_json(path)
        document(node)
    except UsageError:
        return None
    return node.fields


def shown(places: Places, shelf: Shelf, comparison: Path | None) -> Document | None:
    """The results of a shelf, measured where the comparison is about them; None for an empty shelf."""
    if not shelf.results:
        return None
    fields = (_comparison(comparison) if comparison else None) or {}
    measured = _measured(fields.get("others") or [], shelf.results)
    left = [path for path in shelf.results if path not in measured]
    alone = from_folders(left)["others"]
    if not measured:
        return parse({"format": 1, "others": alone, "notes": []}, str(shelf.folder))
    base = fields.get("base")
    if base and not places.is_known(base.get("folder") or ""):
        base = {**base, "folder": None}  # its numbers count, its files are not ours to read
    return parse({**fields, "base": base, "others": [*measured.values(), *alone]}, str(comparison))


def _measured(others: Sequence[dict[str, Any]], results: Sequence[Path]) -> dict[Path, dict[str, Any]]:
    """Of the models in a comparison those that are here, as they were compared."""
    found = {}
    for fields in others:
        for path in results:
            if _is_of(fields, path):
                found[path] = {**fields, "name": path.name, "folder": str(path)}
    return found


def _is_of(fields: dict[str, Any], path: Path) -> bool:
    named = fields.get("folder")
    return isinstance(named, str) and Path(named).name == path.name and fields.get("receipt") == receipt_of(path)


def only(found: Document, path: Path) -> Document:
    """One result, beside its base where it was compared."""
    own = tuple(model for model in found.others if model.folder == str(path))
    compared = any(model.against for model in own)
    return replace(found, others=own, base=found.base if compared else None, notes=())


def base_of(found: Document | None, path: Path) -> str:
    """The model that a result was made from, by what its receipt says; empty where it says nothing."""
    return next(iter(bases([receipt_of(path)])), found.base.name if found and found.base else "")


def speed(model: Model) -> float:
    """Milliseconds per token; NaN where it was not measured."""
    rate = model.measured("decode speed")
    return 1000 / rate.value if rate.is_known and rate.value > 0 else float("nan")


def started_from(shelf: Shelf) -> list[str]:
    """The models that the results were made from, each once."""
    return bases(receipt_of(path) for path in shelf.results)


def checked(fields: Any) -> dict[str, Any]:
    """A comparison that somebody else made. Raises `UsageError` if it is none."""
    document(Node(fields, "the comparison"))
    kept: dict[str, Any] = fields
    return kept

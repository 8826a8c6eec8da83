"""`trimtab.json`: what a folder consists of, so that a flipped bit, a lost shard or a foreign file is noticed on opening.

safetensors files carry no checksum, and a set of shards has nothing that ties its members together; this file is both.
README.md may be edited and dotfiles may come and go (hubs add theirs): neither takes part in loading.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trimtab.core.errors import ModelError
from trimtab.host.provenance import versions

NAME = "trimtab.json"
FORMAT = 1
LARGEST = 1 << 24


def write(folder: Path) -> None:
    """Writes the manifest of everything that is in `folder` now."""
    names = [name for name in _files(folder) if name != NAME]
    entries = {
        name: {"sha256": digest, "size": (folder / name).stat().st_size}
        for name, digest in zip(names, digests(folder, names), strict=True)
    }
    content = {
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "files": entries,
    }
    (folder / NAME).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def verify(folder: Path) -> None:
    """Raises `ModelError` naming the first file that is missing, changed, or not in the manifest. None there: no check."""
    if not (folder / NAME).exists():
        return
    try:
        _verify(folder, _entries(folder))
    except OSError as error:
        raise ModelError(f"{error.filename or folder} cannot be read: {error.strerror}") from error


def _verify(folder: Path, entries: Mapping[str, Any]) -> None:
    there = {name for name in _files(folder) if name != NAME and not _is_dotted(name)}
    for name in sorted(there - entries.keys()):
        if name != "README.md":
            raise ModelError(f"{_shown(folder, name)} was added after the model was written; move it elsewhere")
    checked = [name for name in sorted(entries) if name != "README.md"]
    for name in checked:
        if name not in there:
            raise ModelError(f"{_shown(folder, name)} is missing; fetch or write the model again")
        if (folder / name).stat().st_size != entries[name]["size"]:
            raise ModelError(f"{folder / name} has changed size; fetch or write the model again")
    for name, digest in zip(checked, digests(folder, checked), strict=True):
        if digest != entries[name]["sha256"]:
            raise ModelError(f"{folder / name} has changed (its sha256 differs); fetch or write the model again")


def _entries(folder: Path) -> Mapping[str, Any]:
    path = folder / NAME
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"larger than {LARGEST} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r:.40}; this version reads {FORMAT}")
        entries = content["files"]
        if not isinstance(entries, dict) or not all({"sha256", "size"} <= entry.keys() for entry in entries.values()):
            raise ValueError("its entries need sha256 and size")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path} is not readable as a manifest: {error!s:.300}") from error
    return entries


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _shown(folder: Path, name: str) -> str:
    """Names come from outside: in one line, and not too long."""
    return f"{folder}/{name[:200]}" if name.isprintable() else f"{folder}/{name!r:.200}"


def _is_dotted(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def digests(folder: Path, names: Iterable[str]) -> list[str]:
    """SHA-256, in hex, of each file."""
    # hashlib lets go of the interpreter while it works, so two shards are hashed at a time.
    with ThreadPoolExecutor(max_workers=2) as pool:
        return list(pool.map(lambda name: _digest(folder / name), names))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

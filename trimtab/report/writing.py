"""A report appears whole or not at all, and replaces nothing but a report."""

import os
import secrets
from pathlib import Path

from trimtab.core.errors import UsageError
from trimtab.report import markup, page

HEAD = 4096  # bytes at the beginning of a file in which it says what it is
MARKS = {".html": page.MARK, ".htm": page.MARK, ".md": markup.MARK}


def check_target(path: Path, *suffixes: str) -> Path:
    """The path, if a report may be written there. Raises `UsageError` if its name or what is there says otherwise."""
    if path.suffix.lower() not in suffixes:
        raise UsageError(f"{path} is no name for this kind of report; let it end in {' or '.join(suffixes)}")
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise UsageError(f"{path} is not an ordinary file and will not be replaced; choose another name")
    try:
        with path.open("rb") as held:
            begins = held.read(HEAD).decode("utf-8", errors="replace")
    except FileNotFoundError:
        return path
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    if begins and MARKS[path.suffix.lower()] not in begins:
        raise UsageError(f"{path} exists and is no report of trimtab, so it will not be replaced; choose another name")
    return path


def write(path: Path, text: str) -> int:
    """Replaces the file in one step; the number of bytes. Raises `UsageError` if it cannot be written."""
    data = text.encode("utf-8", errors="replace")
    partial = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _put(partial, data)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}; choose another place") from error
    return len(data)


def _put(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())

"""One process at a time: locks that end with their process, however it ends."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Inside, no other process is inside with the same path; waits until it is so. The empty file at `path` stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file, alone_in(file):
        yield


@contextmanager
def alone_in(file: IO[Any]) -> Iterator[None]:
    """The same for an open file, whatever is in it."""
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


def is_taken(path: Path) -> bool:
    """Whether some process is inside `alone(path)` at this moment."""
    if not path.exists():
        return False
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False

"""One process at a time: locks that end with their process, however it ends."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

PAUSE = 0.05  # seconds between two tries, where the system cannot wait by itself

if sys.platform == "win32":
    import msvcrt

    BEYOND = (1 << 31) - 2  # a byte that no such file has: a lock on it keeps nobody from reading

    def _try(file: IO[Any]) -> bool:
        try:
            _at_that_byte(file, msvcrt.LK_NBLCK)
        except OSError:  # the same for every reason
            return False
        return True

    def _take(file: IO[Any]) -> None:
        while not _try(file):
            time.sleep(PAUSE)

    def _free(file: IO[Any]) -> None:
        _at_that_byte(file, msvcrt.LK_UNLCK)

    def _at_that_byte(file: IO[Any], what: int) -> None:
        here = file.tell()
        file.seek(BEYOND)
        try:
            msvcrt.locking(file.fileno(), what, 1)
        finally:
            file.seek(here)

else:
    import fcntl

    def _try(file: IO[Any]) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _take(file: IO[Any]) -> None:
        fcntl.flock(file, fcntl.LOCK_EX)

    def _free(file: IO[Any]) -> None:
        fcntl.flock(file, fcntl.LOCK_UN)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Inside, no other process is inside with the same path; waits until it is so. The empty file at `path` stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file, alone_in(file):
        yield


@contextmanager
def alone_in(file: IO[Any]) -> Iterator[None]:
    """The same for an open file, whatever is in it."""
    _take(file)
    try:
        yield
    finally:
        _free(file)


def is_taken(path: Path) -> bool:
    """Whether some process is inside `alone(path)` at this moment."""
    if not path.exists():
        return False
    with path.open("ab") as file:
        if not _try(file):
            return True
        _free(file)
    return False

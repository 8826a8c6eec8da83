"""One process at a time: locks that end with their process, however it ends."""

import os
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

    def take_now(handle: int) -> bool:
        """Takes the lock of an open file unless somebody has it; whether it did. Closing the file frees it."""
        try:
            _at_that_byte(handle, msvcrt.LK_NBLCK)
        except OSError:  # the same for every reason
            return False
        return True

    def _take(handle: int) -> None:
        while not take_now(handle):
            time.sleep(PAUSE)

    def _free(handle: int) -> None:
        _at_that_byte(handle, msvcrt.LK_UNLCK)

    def _at_that_byte(handle: int, what: int) -> None:
        here = os.lseek(handle, 0, os.SEEK_CUR)
        os.lseek(handle, BEYOND, os.SEEK_SET)
        try:
            msvcrt.locking(handle, what, 1)
        finally:
            os.lseek(handle, here, os.SEEK_SET)

else:
    import errno
    import fcntl

    WITHOUT = (errno.ENOLCK, errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)  # some network file systems have no locks

    def take_now(handle: int) -> bool:
        """Takes the lock of an open file or folder unless somebody has it; whether it did. Closing the handle frees it."""
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in WITHOUT:
                raise
        return True

    def _take(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX)

    def _free(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_UN)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Inside, no other process is inside with the same path; waits until it is so. The empty file at `path` stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file, alone_in(file):
        yield


@contextmanager
def alone_in(file: IO[Any]) -> Iterator[None]:
    """The same for an open file, whatever is in it."""
    _take(file.fileno())
    try:
        yield
    finally:
        file.flush()
        _free(file.fileno())


def is_taken(path: Path) -> bool:
    """Whether some process is inside `alone(path)` at this moment."""
    if not path.exists():
        return False
    with path.open("ab") as file:
        if not take_now(file.fileno()):
            return True
        _free(file.fileno())
    return False

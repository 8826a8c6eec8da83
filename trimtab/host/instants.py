"""Named instants of writing: between any two of them a process may be killed, and what is on disk must be the old or the new.

Nothing happens at them, unless somebody listens (`testing/faults.py` ends the process there, or lets the disk fail).
"""

from collections.abc import Callable

INSTANTS = (
    "object: written",  # under a temporary name, perhaps only in the system's cache
    "object: on disk",  # its bytes are, its name is not
    "object: named",
    "commit: objects",  # all that the new state refers to is on disk, the state is not
    "commit: written",  # the new pointer is, under a temporary name
    "commit: pointed",  # renamed, the folder not yet forced to disk
    "commit: done",  # what nobody refers to any more is still there
    "commit: cleaned",
    "publish: whole",  # all files are on disk, under a hidden name
    "publish: in place",
    "publish: done",
    "state: removed",
)
PIECES = (
    "piece: written",  # of a measurement, on disk under a hidden name
    "piece: kept",
)
_listeners: list[Callable[[str], None]] = []


def reached(instant: str) -> None:
    """Say so to whoever listens."""
    for listener in _listeners:
        listener(instant)


def listen(listener: Callable[[str], None]) -> None:
    """From now on `listener(instant)` is called at each; what it raises comes out of the write."""
    _listeners.append(listener)

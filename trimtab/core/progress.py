"""How long work tells where it is. Whoever watches decides how to show it; nobody watching costs nothing."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """`done` of `total` units of `phase` are finished; `detail` is what is being worked on now."""

    phase: str
    done: int
    total: int
    detail: str = ""


Watcher = Callable[[Progress], None]


def unwatched(_: Progress) -> None:
    """The watcher of those who do not watch."""

"""Work that is done once: what is kept is taken as it is, the rest is measured, with one measure of progress over all of it.

Every result is kept as soon as it is there, so a run that is stopped goes on from there, and a second run has nothing to do.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from trimtab.core.progress import Progress, Watcher
from trimtab.measure.kept import Kept, Key
from trimtab.measure.pieces import Keep, Pieces, Result, here

Name = TypeVar("Name")
WHOLE = 100  # progress is told in percent


@dataclass(frozen=True)
class Wanted:
    """kind, key: under which it is kept. make: measures it, keeping its parts meanwhile. work: how much that is, in tokens.

    detail: for whoever watches.
    """

    kind: str
    key: Key
    make: Callable[[Watcher, Keep], Result]
    work: float = 1.0
    detail: str = ""


def obtained(wanted: Mapping[Name, Wanted], watch: Watcher, phase: str) -> dict[Name, Result]:
    """Everything that is wanted, measured in the order given where it is not kept."""
    held = {name: Kept(one.kind).get(one.key) for name, one in wanted.items()}
    total = sum(one.work for name, one in wanted.items() if held[name] is None)
    found: dict[Name, Result] = {}
    done = 0.0
    for name, one in wanted.items():
        result = held[name]
        if result is None:
            pieces = Pieces({"of": one.kind, **one.key, **here()})
            result = one.make(_part(watch, phase, one, done, total), pieces)
            Kept(one.kind).put(one.key, *result)
            pieces.forget()
            done += one.work
        found[name] = result
    if total:
        watch(Progress(phase, WHOLE, WHOLE))
    return found


def _part(watch: Watcher, phase: str, one: Wanted, before: float, total: float) -> Watcher:
    """Passes on what one piece of work tells, as a share of all of it."""

    def watched(now: Progress) -> None:
        share = (before + one.work * now.done / max(now.total, 1)) / total
        watch(Progress(phase, int(WHOLE * share), WHOLE, one.detail))

    watched(Progress(phase, 0, 1))
    return watched

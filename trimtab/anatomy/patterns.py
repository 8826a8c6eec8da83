"""Patterns over dotted names, compared part by part.

Text matching is the trap here: as text, `layers.1` also begins the names of layers 10 to 19. So a pattern is cut at the
dots, and its parts must equal *consecutive parts* of the name. Within a part `*`, `?` and `[..]` are globs; there are no
regular expressions, because recipes come from strangers and an expression can be made to run for ever.
"""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from trimtab.core.errors import UsageError, did_you_mean


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """The names that the pattern matches, in their order. `UsageError` with the nearest names if there is none."""
    known = list(names)
    wanted = pattern.strip(".").split(".")
    if not all(wanted):
        raise UsageError(f"the pattern {pattern!r} has an empty part; write something like 'layers.1' or 'mlp.*'")
    found = [name for name in known if _within(wanted, name.split("."))]
    if not found:
        raise UsageError(f"the pattern {pattern!r} matches nothing{_nearest(wanted, known)}")
    return found


def _within(wanted: Sequence[str], parts: Sequence[str]) -> bool:
    """Does a run of consecutive parts match?"""
    return any(all(map(fnmatchcase, run, wanted)) for run in _runs(parts, len(wanted)))


def _runs(parts: Sequence[str], length: int) -> list[Sequence[str]]:
    return [parts[start : start + length] for start in range(len(parts) - length + 1)]


def _nearest(wanted: Sequence[str], names: Sequence[str]) -> str:
    """Advice on the first part that fits nowhere, else on the whole; block numbers are written as one `*`."""
    parts = {part for name in names for part in name.split(".")}
    numbers = sorted(int(part) for part in parts if part.isdecimal())
    for part in wanted:
        if part.isdecimal() and part not in parts and numbers:
            return f"; the numbers in names are {numbers[0]} to {numbers[-1]}"
        if not any(fnmatchcase(other, part) for other in parts):
            return did_you_mean(part, {other for other in parts if not other.isdecimal()})
    runs = {".".join(map(_numberless, run)) for name in names for run in _runs(name.split("."), len(wanted))}
    return did_you_mean(".".join(map(_numberless, wanted)), runs)


def _numberless(part: str) -> str:
    return "*" if part.isdecimal() else part

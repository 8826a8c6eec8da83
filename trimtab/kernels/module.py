"""The compiled module: whether it is there, what it can do on this processor, and which of that is used."""

from functools import cache
from typing import Any

from trimtab.core.compiled import chosen, load
from trimtab.core.errors import UsageError


def native() -> Any:
    """The compiled module. Raises `UsageError` if there is none."""
    module, why = load()
    if module is None:
        raise UsageError(f"no compiled kernels: {why}")
    return module


def available() -> bool:
    """Whether there are compiled kernels."""
    return load()[0] is not None


def instruction_sets() -> tuple[str, ...]:
    """What this processor can run, slowest first; nothing without the compiled module."""
    module, _ = load()
    return () if module is None else _instruction_sets()


@cache
def _instruction_sets() -> tuple[str, ...]:
    return tuple(native().instruction_sets())


def instruction_set(name: str | None = None) -> str:
    """The one to use: `name`, else what TRIMTAB_CPU says, else the fastest. Raises `UsageError` for one that is not there."""
    return chosen(_instruction_sets(), name)


def describe() -> str:
    """One line for `trimtab doctor`."""
    module, why = load()
    if module is None:
        return f"none, packed models run unpacked: {why}"
    try:
        return f"{instruction_set()} (of {', '.join(_instruction_sets())}), {module.cores()} cores"
    except UsageError as error:
        return str(error)

"""The compiled module: whether it is there, what it can do on this processor, and which of that is used.

TRIMTAB_CPU (scalar, avx2, avx512) forces an instruction set, for tests and comparisons; otherwise the fastest one is taken.
"""

import os
from functools import cache
from importlib import import_module
from typing import Any

from trimtab.core.errors import UsageError

INTERFACE = 2  # what this side expects of the module; the same number stands in native/CMakeLists.txt
INSTALL = "pip install ./native builds it, with a C++ compiler"


@cache
def _load() -> tuple[Any, str]:
    """(the module, or None; why it is None)."""
    try:
        module = import_module("trimtab_native")
    except ModuleNotFoundError:
        return None, f"trimtab-native is not installed ({INSTALL})"
    except ImportError as error:
        return None, f"trimtab-native does not load: {str(error).splitlines()[0]} ({INSTALL})"
    if module.INTERFACE != INTERFACE:
        return None, f"trimtab-native is of version {module.INTERFACE}, this trimtab needs {INTERFACE} ({INSTALL})"
    return module, ""


def native() -> Any:
    """The compiled module. Raises `UsageError` if there is none."""
    module, why = _load()
    if module is None:
        raise UsageError(f"no compiled kernels: {why}")
    return module


def available() -> bool:
    """Whether there are compiled kernels."""
    return _load()[0] is not None


def instruction_sets() -> tuple[str, ...]:
    """What this processor can run, slowest first; nothing without the compiled module."""
    module, _ = _load()
    return () if module is None else _instruction_sets()


@cache
def _instruction_sets() -> tuple[str, ...]:
    return tuple(native().instruction_sets())


def instruction_set(name: str | None = None) -> str:
    """The one to use: `name`, else what TRIMTAB_CPU says, else the fastest. Raises `UsageError` for one that is not there."""
    asked = name or os.environ.get("TRIMTAB_CPU")
    known = _instruction_sets()
    if not asked:
        return known[-1]
    if asked not in known:
        source = "" if name else "TRIMTAB_CPU: "
        raise UsageError(f"{source}this processor cannot run {asked!r} kernels; it has {', '.join(known)}")
    return asked


def describe() -> str:
    """One line for `trimtab doctor`."""
    module, why = _load()
    if module is None:
        return f"none, packed models run unpacked: {why}"
    try:
        return f"{instruction_set()} (of {', '.join(_instruction_sets())}), {module.cores()} cores"
    except UsageError as error:
        return str(error)

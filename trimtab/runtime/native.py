"""The compiled module, as this room needs it."""

import os
from functools import cache
from importlib import import_module
from typing import Any

from trimtab.core.errors import UsageError
from trimtab.runtime.errors import Unsupported

INTERFACE = 2  # the same number stands in native/CMakeLists.txt
INSTALL = "pip install ./native builds it, with a C++ compiler"


@cache
def native() -> Any:
    """trimtab_native. Raises `Unsupported` where it is missing, does not load, or is of another version."""
    try:
        module = import_module("trimtab_native")
    except ImportError as error:
        raise Unsupported(f"no compiled kernels: {str(error).splitlines()[0]} ({INSTALL})") from error
    if module.INTERFACE != INTERFACE or not hasattr(module, "Session"):
        raise Unsupported(f"the compiled kernels are of another version ({INSTALL})")
    return module


def instruction_set(name: str | None) -> str:
    """`name`, else what TRIMTAB_CPU says, else the fastest that this processor has. Raises `UsageError`."""
    known = native().instruction_sets()
    asked = name or os.environ.get("TRIMTAB_CPU") or known[-1]
    if asked not in known:
        raise UsageError(f"this processor cannot run {asked!r} kernels; it has {', '.join(known)}")
    return str(asked)

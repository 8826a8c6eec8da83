"""The compiled module of `native/`: whether it is there, and which of its instruction sets is used.

Here, because two rooms call it that may not see each other: `kernels` with torch, `runtime` without.
TRIMTAB_CPU (scalar, avx2, avx512, neon, dotprod) forces an instruction set, for tests and comparisons; otherwise the fastest one
is taken.
"""

import os
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import Any

from trimtab.core.errors import UsageError

INTERFACE = 4  # what this side expects of the module; the same number stands in native/CMakeLists.txt
INSTALL = "pip install ./native builds it, with a C++ compiler"


@cache
def load() -> tuple[Any, str]:
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


def chosen(known: Sequence[str], name: str | None = None) -> str:
    """One of `known`, slowest first: `name`, else what TRIMTAB_CPU says, else the last. Raises `UsageError` for another one."""
    asked = name or os.environ.get("TRIMTAB_CPU")
    if not asked:
        return known[-1]
    if asked not in known:
        source = "" if name else "TRIMTAB_CPU: "
        raise UsageError(f"{source}this processor cannot run {asked!r} kernels; it has {', '.join(known)}")
    return asked

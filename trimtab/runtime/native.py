"""The compiled module, as this room needs it: without it, models run through transformers."""

from typing import Any

from trimtab.core.compiled import chosen, load
from trimtab.runtime.errors import Unsupported


def native() -> Any:
    """trimtab_native. Raises `Unsupported` where it is missing, does not load, or is of another version."""
    module, why = load()
    if module is None:
        raise Unsupported(f"no compiled kernels: {why}")
    return module


def instruction_set(name: str | None) -> str:
    """`name`, else what TRIMTAB_CPU says, else the fastest that this processor has. Raises `UsageError`."""
    return chosen(native().instruction_sets(), name)

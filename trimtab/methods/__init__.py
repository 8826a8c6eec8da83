"""One file per paper. The folder is the room, the file name is the id, and the file is found by being there.

Classes are here by their names, too, third parties' included: `trimtab.methods.Gptq(bits=3)`. A name is that of the id but
for capitals and underscores, so nothing has to be imported to find the file. `__init__.pyi` says the same to type checkers
and editors; docs/generate.py writes it.
"""

from typing import Any

from trimtab.core.errors import did_you_mean
from trimtab.core.registry import get, ids


def __getattr__(name: str) -> Any:
    for id in ids():
        if id.replace("_", "") == name.lower() and (method := get(id)).__name__ == name:
            return method
    raise AttributeError(f"there is no method class {name!r}{did_you_mean(name, _spelled())}")


def __dir__() -> list[str]:
    return sorted(get(id).__name__ for id in ids())


def _spelled() -> list[str]:
    """Class names as far as they can be told without importing anything."""
    return ["".join(part.capitalize() for part in id.split("_")) for id in ids()]

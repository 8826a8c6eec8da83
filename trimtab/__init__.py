"""trimtab: make a pretrained language model smaller by composable published methods, and prove what that cost.

    import trimtab as tt

    done = tt.compress("path/or/hub-name", tt.methods.Gptq(bits=3), out="smaller")
    print(done.report.markdown())
    print(*tt.measure("smaller"), sep="\n")

Importing this package imports neither torch nor transformers; it only leaves word that transformers, whenever it is loaded,
shall know how to open what trimtab wrote.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from trimtab.host.register import install

if TYPE_CHECKING:
    from trimtab import methods
    from trimtab.core.card import Card, Claim
    from trimtab.core.errors import TrimtabError, UsageError
    from trimtab.core.recipe import Calibration, Recipe, Step, Where
    from trimtab.core.registry import get as method
    from trimtab.core.report import Measurement, Report
    from trimtab.host.adapt import adapt, merge
    from trimtab.host.checkpoint import save
    from trimtab.host.compress import compress, plan
    from trimtab.host.export.job import export
    from trimtab.host.opening import load
    from trimtab.host.skipping import skipping
    from trimtab.measure import measure
    from trimtab.measure import measure as evaluate
    from trimtab.measure.verbs import compare

__version__ = "0.1.0"

_WHERE = {
    "Calibration": "core.recipe",
    "Card": "core.card",
    "Claim": "core.card",
    "Measurement": "core.report",
    "Recipe": "core.recipe",
    "Report": "core.report",
    "Step": "core.recipe",
    "TrimtabError": "core.errors",
    "UsageError": "core.errors",
    "Where": "core.recipe",
    "adapt": "host.adapt",
    "compare": "measure.verbs",
    "compress": "host.compress",
    "evaluate": "measure",
    "export": "host.export.job",
    "load": "host.opening",
    "merge": "host.adapt",
    "method": "core.registry",
    "plan": "host.compress",
    "save": "host.checkpoint",
    "skipping": "host.skipping",
}

_ROOMS = ("measure", "methods")  # `measure` can be called, `methods` has the classes
_THERE = {"evaluate": "measure", "method": "get"}  # names that would collide with a room, or say too little here

__all__ = [
    "Calibration",
    "Card",
    "Claim",
    "Measurement",
    "Recipe",
    "Report",
    "Step",
    "TrimtabError",
    "UsageError",
    "Where",
    "adapt",
    "compare",
    "compress",
    "evaluate",
    "export",
    "load",
    "measure",
    "merge",
    "method",
    "methods",
    "plan",
    "save",
    "skipping",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"trimtab.{name}")
    if name not in _WHERE:
        raise AttributeError(f"module 'trimtab' has no attribute {name!r}")
    return getattr(import_module(f"trimtab.{_WHERE[name]}"), _THERE.get(name, name))


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


install()

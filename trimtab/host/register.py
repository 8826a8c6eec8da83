"""Makes plain `AutoModelForCausalLM.from_pretrained` open trimtab's folders, without importing anything heavy.

transformers asks a table how to build the modules of a checkpoint. To be in that table we would have to import
transformers, which costs seconds; so `install` only asks Python's import system to tell us when the module that every
model needs has been loaded, and our entry is made then. Whoever never touches a model never pays.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

# Not the module of the table itself: that one is loaded in the middle of this one, where our imports could not be met.
AWAITED = "transformers.modeling_utils"
OURS = "trimtab.host.quantizer"


class _Watch(MetaPathFinder):
    """Lets the other finders find the awaited module, and has our registration run right after it is loaded."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != AWAITED:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None:
                _register_after(spec)
                return spec
        return None


def install() -> None:
    """Idempotent. Registers at once where transformers' models are loaded already, else when they will be."""
    if AWAITED in sys.modules:
        import_module(OURS)
    elif not any(isinstance(finder, _Watch) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watch())


def _register_after(spec: ModuleSpec) -> None:
    loader = spec.loader
    load = loader.exec_module  # type: ignore[union-attr]

    def exec_module(module: ModuleType) -> None:
        load(module)
        # Importing is registering. When our module is what pulled transformers in, this returns the half-loaded module
        # and the registration happens at its end.
        import_module(OURS)

    loader.exec_module = exec_module  # type: ignore[union-attr, method-assign]

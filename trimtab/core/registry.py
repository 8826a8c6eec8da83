"""The file tree is the registry.

`methods/<room>/<id>.py` defines exactly one method whose card has that id. Third parties add theirs through the entry point
group `trimtab.methods` (`mine = "package.module:Mine"`). Listing ids imports nothing; asking for one imports its file, and
a file that does not import fails loudly.
"""

from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from trimtab.core.errors import TrimtabError, UsageError, did_you_mean
from trimtab.core.kinds import Allocator, BlockMethod, ChannelMethod, LinearMethod, Method, ModelMethod, ProbeMethod, ScaleMethod
from trimtab.core.scratch import ScratchMethod
from trimtab.core.taught import TaughtMethod
from trimtab.core.trained import AdapterMethod, ScheduleMethod

GROUP = "trimtab.methods"
KINDS: dict[type[Method], str] = {
    BlockMethod: "block",  # before what it is a special case of
    LinearMethod: "linear",
    ChannelMethod: "channel",
    ModelMethod: "model",
    ScaleMethod: "scale",
    TaughtMethod: "taught",
    Allocator: "allocator",
    ProbeMethod: "probe",
    AdapterMethod: "adapter",
    ScheduleMethod: "schedule",
    ScratchMethod: "scratch",
}


@cache
def _files() -> dict[str, Path]:
    root = Path(__file__).parent.parent / "methods"
    found: dict[str, Path] = {}
    for path in sorted(root.glob("*/*.py")):
        if path.stem.startswith("_"):
            continue
        if path.stem in found:
            raise TrimtabError(f"two method files are called {path.name}: {found[path.stem].parent} and {path.parent}")
        found[path.stem] = path
    return found


def _foreign() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def ids() -> list[str]:
    """All method ids, ours and third parties', without importing any."""
    return sorted({*_files(), *_foreign()})


def room(id: str) -> str:
    """The folder a method lives in; the package name for a third party's."""
    if id in _files():
        return _files()[id].parent.name
    return _foreign()[id].value.partition(":")[0].partition(".")[0]


def get(id: str) -> type[Method]:
    """The method class with this id. Raises `UsageError` for an unknown id (did you mean ...)."""
    if id in _files():
        path = _files()[id]
        return _only_method(import_module(f"trimtab.methods.{path.parent.name}.{path.stem}"), id)
    if id in _foreign():
        return _checked(_foreign()[id].load(), id)
    raise UsageError(f"there is no method {id!r:.80}{did_you_mean(id, ids())}")


def kind(method: type[Method]) -> str:
    """block, linear, channel, model, scale, taught, allocator, probe, adapter, schedule or scratch."""
    for base, name in KINDS.items():
        if issubclass(method, base):
            return name
    raise TrimtabError(f"{method.__name__} is of no kind that trimtab runs ({', '.join(KINDS.values())})")


def _only_method(module: object, id: str) -> type[Method]:
    own = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Method) and value.__module__ == module.__name__  # type: ignore[attr-defined]
    ]
    if len(own) != 1:
        raise TrimtabError(f"methods file {id}.py must define exactly one method, it defines {len(own)}")
    return _checked(own[0], id)


def _checked(method: type[Method], id: str) -> type[Method]:
    kind(method)
    if method.card.id != id:
        raise TrimtabError(f"{method.__name__}: its card says id {method.card.id!r}, it is registered as {id!r}")
    return method

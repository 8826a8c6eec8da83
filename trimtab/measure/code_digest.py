"""Which code did a number come from? A digest of the files that can change it, and of nothing else.

A commit would not do: it changes with every word of the documentation, and results that took hours would look old at once.
What counts is what the measuring imports, and what that imports, within one package: a name that is taken from a package
(`from trimtab.formats import Grouped`) leads to the file that defines it, so a new format makes no old result look old.
Of each file everything counts except docstrings, comments, layout and cards, which say what a method promises and not what
it does. Modules in `SILENT` do not count either: they report, or they bring models and texts, whose contents have digests
of their own, or they are switched off where sides are measured. What carries out one kind of method (`RUNNERS`) counts where it
is named: how models are trained decides no result of what is rounded. Imports for type annotations lead nowhere.
"""

import ast
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path

SILENT = frozenset(
    {
        *("trimtab.core.card", "trimtab.core.errors", "trimtab.core.progress", "trimtab.core.report"),
        *("trimtab.core.expression", "trimtab.core.registry"),  # what they make of an expression is part of what is measured
        *("trimtab.data.assets", "trimtab.data.text"),
        "trimtab.formats",  # the table of all formats; a method imports those that it makes
        *("trimtab.host.card", "trimtab.host.folder_checks", "trimtab.host.gguf_import", "trimtab.host.manifest"),
        *("trimtab.host.model_assets", "trimtab.host.provenance", "trimtab.host.publish", "trimtab.host.source"),
        *("trimtab.engine.depot", "trimtab.engine.forecast", "trimtab.engine.resume"),  # for runs that write to a folder
        *(
            "trimtab.host.finishing",
            "trimtab.host.identity",
            "trimtab.host.instants",
            "trimtab.host.keeping",
            "trimtab.host.offload",
        ),
        *("trimtab.host.preflight", "trimtab.host.store", "trimtab.host.tensor_file"),
        # Switched off where sides are measured:
        *("trimtab.kernels", "trimtab.kernels.linear", "trimtab.kernels.module", "trimtab.kernels.passes"),
        *("trimtab.kernels.repack", "trimtab.engine.passes", "trimtab.measure.pieces"),
    }
)
SEARCH = "search"
RUNNERS: Mapping[str, tuple[str, ...]] = {
    "block": ("trimtab.engine.tuning",),
    "channel": ("trimtab.engine.channels",),
    "model": ("trimtab.engine.rewriting",),
    "scale": ("trimtab.engine.folding",),
    "taught": ("trimtab.engine.teaching", "trimtab.engine.channels", "trimtab.host.school"),
    SEARCH: ("trimtab.engine.search", "trimtab.host.searching"),  # of whatever kind judges candidates
}
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def digest_of(modules: Iterable[str]) -> str:
    """SHA-256, in hex, over the names and the code of the modules and of everything they import from their own package."""
    lines = [f"{name} {essence(file)}" for name, file in sorted(reached(modules).items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def reached(modules: Iterable[str]) -> dict[str, Path]:
    """Module -> file, for the modules and all that count among their imports."""
    found: dict[str, Path] = {}
    waiting = list(modules)
    silent = SILENT | frozenset().union(*RUNNERS.values()).difference(waiting)
    while waiting:
        name = waiting.pop()
        file = source(name)
        if name in found or name in silent or file is None:
            continue
        found[name] = file
        waiting += [target for target in imports(file) if _root(target) == _root(name)]
    return found


@cache
def source(module: str) -> Path | None:
    """The Python file of a module; None where there is none, as for what is built in."""
    try:
        spec = find_spec(module)
    except ModuleNotFoundError:
        return None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


@cache
def imports(file: Path) -> frozenset[str]:
    """Dotted names of the modules that the code of a file imports; a name that a package passes on, from where it is."""
    found = set()
    for node in _running(_tree(file)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {_defined_in(node.module, alias.name) for alias in node.names}
    return frozenset(found)


def _defined_in(module: str, name: str) -> str:
    """The module that an import of `name` from `module` leads to."""
    file = source(module)
    if file is None or file.name != "__init__.py":
        return module
    for node in _tree(file).body:
        if isinstance(node, ast.ImportFrom) and node.module and any(name == (a.asname or a.name) for a in node.names):
            return node.module
    return f"{module}.{name}" if source(f"{module}.{name}") else module


def _running(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that are there for type checkers."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            yield node
            yield from _running(node)


@cache
def essence(file: Path) -> str:
    """SHA-256, in hex, of what a file does."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED):
            node.body = [part for part in node.body if not _is_said(part)] or [ast.Pass()]
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()


def _is_said(node: ast.stmt) -> bool:
    """A docstring, or an assignment of a card."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
    return isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "Card"


@cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _root(module: str) -> str:
    return module.partition(".")[0]

"""The rules of the house that a reviewer would otherwise have to remember: who imports whom, names, sizes, docstrings."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from trimtab.core import registry

PACKAGE = Path(registry.__file__).parent.parent
FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(f.relative_to(PACKAGE)) for f in FILES]
EVERY = pytest.mark.parametrize("path", FILES, ids=NAMES)

# Which rooms a room may import, itself included. "" is trimtab/__init__.py, which only says where things are.
ALLOWED: dict[str, set[str]] = {
    "core": {"core"},
    "tensors": {"tensors"},
    "formats": {"formats", "core", "tensors"},
    "stats": {"stats", "core", "tensors", "kernels"},
    "kernels": {"kernels", "core", "formats"},
    "runtime": {"runtime", "core"},
    "anatomy": {"anatomy", "core", "formats"},
    "methods": {"core", "tensors", "formats", "stats"},
    "engine": {"engine", "core", "tensors", "formats", "kernels", "stats", "anatomy"},
    "data": {"data", "core"},
    "host": {"host", "core", "tensors", "formats", "kernels", "stats", "anatomy", "engine", "data"},
    "measure": {"measure", "core", "tensors", "formats", "kernels", "runtime", "stats", "anatomy", "engine", "data", "host"},
    "report": {"report", "core"},
    "ui": {"", "ui", "core", "data", "report"},
    "cli": {
        "",
        "cli",
        "core",
        "tensors",
        "formats",
        "kernels",
        "runtime",
        "stats",
        "anatomy",
        "engine",
        "data",
        "host",
        "measure",
        "report",
        "ui",
    },
    "testing": {"", "testing", "core", "tensors", "formats", "kernels", "stats", "anatomy", "engine", "data", "host", "measure"},
    "": {"host"},
}
TYPES_ONLY = {"methods": {"anatomy"}, "core": {"anatomy"}}
HOSTED = {"host", "measure", "testing", "cli"}
NEVER_NAMES = {
    *("percdamp", "dampening_frac", "rel_damp", "damp_percent", "wbits", "n_bit", "n_bits", "w_bit", "nbits", "num_bits"),
    *("groupsize", "blocksize", "q_group_size", "nsamples", "n_samples", "seqlen", "seq_len", "qweight", "qzeros", "scales"),
    *("prune_n", "prune_m", "sparsity_ratio", "pruning_ratio", "inp", "inps", "outs", "hessian", "W1", "Hinv", "tmp", "tmp2"),
}
NEVER_CALLED = {"eval", "exec", "compile", "__import__"}
NEVER_ATTRIBUTES = {("torch", "load"), ("yaml", "load"), ("yaml", "unsafe_load"), ("yaml", "full_load"), ("torch", "manual_seed")}
NEVER_IMPORTED = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def room(path: Path) -> str:
    """The folder; of the file that runs the package itself "cli", the command line beginning there."""
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else "cli" if path.name == "__main__.py" else ""


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(dotted module, whether for type annotations only) of every import statement, wherever it stands."""
    for_types = {
        id(node)
        for guard in ast.walk(tree(path))
        if isinstance(guard, ast.If) and "TYPE_CHECKING" in ast.unparse(guard.test)
        for part in guard.body
        for node in ast.walk(part)
    }
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in for_types) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            module = node.module or ""
            names = [_imported(alias.name) for alias in node.names] if module == "trimtab" else [module]
            yield from ((name, id(node) in for_types) for name in names)


def _imported(name: str) -> str:
    """What `from trimtab import name` imports: a room, or something that the package itself says."""
    return f"trimtab.{name}" if name in ALLOWED else "trimtab"


def test_the_rules_read_the_whole_house() -> None:
    assert len(FILES) > 60
    assert {room(f) for f in FILES} == set(ALLOWED)
    assert ("trimtab.anatomy", True) in set(imports(PACKAGE / "methods/rewrite/quarot.py"))
    assert ("transformers", False) in {(m.partition(".")[0], t) for m, t in imports(PACKAGE / "testing/tiny.py")}


@EVERY
def test_rooms_import_only_what_they_may(path: Path) -> None:
    here = room(path)
    for module, for_types in imports(path):
        top, _, rest = module.partition(".")
        if top == "trimtab" and not (for_types and here in ("", *ALLOWED[here])):
            there = rest.partition(".")[0]
            may = ALLOWED[here] | (TYPES_ONLY.get(here, set()) if for_types else set())
            assert there in may, f"{here} may not import {module}"
        if top in ("transformers", "peft", "accelerate", "huggingface_hub"):
            assert here in HOSTED, f"only {', '.join(sorted(HOSTED))} may import {module}"
        if here == "tensors":
            assert top in ("trimtab", "torch") or top in _STANDARD, f"tensors may import torch only, not {module}"


@EVERY
def test_methods_know_no_other_method(path: Path) -> None:
    if room(path) == "methods":
        assert not [m for m, _ in imports(path) if m.startswith(("trimtab.methods", "trimtab.host", "trimtab.engine"))]


@EVERY
def test_nothing_runs_what_a_file_says(path: Path) -> None:
    for module, _ in imports(path):
        assert module.partition(".")[0] not in NEVER_IMPORTED
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in NEVER_CALLED, f"line {node.lineno}: {node.func.id}()"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) not in NEVER_ATTRIBUTES, f"line {node.lineno}: {node.value.id}.{node.attr}"
        if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
            assert isinstance(node.value, ast.Constant), f"line {node.value.lineno}: trust_remote_code must be False"
            assert node.value.value is False, f"line {node.value.lineno}: trust_remote_code must be False"


def identifiers(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree(path)):
        match node:
            case ast.Name():
                yield node.id, node.lineno
            case ast.arg():
                yield node.arg, node.lineno
            case ast.Attribute():
                yield node.attr, node.lineno
            case ast.FunctionDef() | ast.ClassDef():
                yield node.name, node.lineno


@EVERY
def test_one_vocabulary(path: Path) -> None:
    found = [f"line {line}: {name}" for name, line in identifiers(path) if name in NEVER_NAMES]
    assert not found, f"not our words: {found}"


@EVERY
def test_files_are_read_in_a_sitting(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines < (250 if room(path) == "methods" else 400)
    assert path.stem not in ("utils", "util", "helpers", "common", "misc")


@EVERY
def test_everything_public_says_what_it_is(path: Path) -> None:
    if path.stem != "__init__" or path.read_text().strip():
        assert ast.get_docstring(tree(path)), "the module has no docstring"
    if room(path) not in ("core", "tensors", "formats", "stats"):
        return
    for node in tree(path).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"


@EVERY
def test_nothing_is_left_for_later(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not [word for word in ("TODO", "FIXME", "XXX", "HACK") if word in text]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"line {node.lineno}: bare except"
            assert not all(isinstance(n, ast.Pass) for n in node.body), f"line {node.lineno}: swallowed exception"


@pytest.mark.parametrize("id", registry.ids())
def test_cards_carry_the_name_of_their_file(id: str) -> None:
    method = registry.get(id)
    assert method.card.id == id
    assert Path(str(PACKAGE / "methods" / registry.room(id) / f"{id}.py")).is_file()


_STANDARD = {"collections", "contextlib", "dataclasses", "functools", "itertools", "math", "typing", "enum"}

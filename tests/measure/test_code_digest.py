"""The digest follows what code does and where its names come from, and nothing else."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from trimtab.core.kinds import Trials
from trimtab.core.recipe import Recipe
from trimtab.core.registry import get, ids, kind
from trimtab.engine.run import _RUNNERS
from trimtab.measure import code_digest
from trimtab.measure.code_digest import RUNNERS, SEARCH, SILENT, digest_of, reached, source
from trimtab.measure.side_store import MEASURING, modules_of

FILES = {
    "__init__": "",
    "method": (
        '"""What it does."""\n'
        "from typing import TYPE_CHECKING\nfrom invented import parts\nfrom invented.box import Thing\n"
        "if TYPE_CHECKING:\n    from invented import typed\n"
        "class Method:\n    card = Card(note='a')\n    def solve(self):\n        return Thing(1)  # why\n"
    ),
    "parts": "import invented.deeper\nimport torch\n",
    "deeper": "VALUE = 1\n",
    "typed": "VALUE = 1\n",
    "box/__init__": "from invented.box.thing import Thing\nfrom invented.box.other import Other\n",
    "box/thing": "class Thing:\n    pass\n",
    "box/other": "class Other:\n    pass\n",
}
Edit = Callable[[str, str, str], str]


@pytest.fixture
def edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Edit]:
    """Replaces text in a file of an invented package; gives the digest of its method."""
    for name, text in FILES.items():
        path = tmp_path / "invented" / f"{name}.py"
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))

    def edited(name: str, old: str, new: str) -> str:
        path = tmp_path / "invented" / f"{name}.py"
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new), encoding="utf-8")
        forget()
        return digest_of(["invented.method"])

    forget()
    yield edited
    forget()


def forget() -> None:
    """The digests of a process are those of the code it runs; here files change under it."""
    importlib.invalidate_caches()
    for cached in (code_digest.source, code_digest.imports, code_digest.essence, code_digest._tree):
        cached.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "invented"]:
        del sys.modules[name]


def test_what_is_reached(edit: Edit) -> None:
    assert reached(["invented.method"]).keys() == {"invented." + n for n in ("method", "parts", "deeper", "box.thing")}


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("method", "What it does.", "What it really does."),
        ("method", "# why", "# because"),
        ("method", "Thing(1)", "Thing(\n            1\n        )"),
        ("method", "note='a'", "note='b', claims=()"),
        ("typed", "1", "2"),
        ("box/other", "pass", "x = 1"),
        ("box/__init__", "Other\n", "Other\nfrom invented.box.other import Other as More\n"),
    ],
)
def test_what_changes_no_result_changes_no_digest(edit: Edit, name: str, old: str, new: str) -> None:
    before = digest_of(["invented.method"])
    assert edit(name, old, new) == before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("method", "Thing(1)", "Thing(2)"),
        ("deeper", "1", "2"),
        ("box/thing", "pass", "x = 1"),
        ("method", "def solve", "def salve"),
    ],
)
def test_what_may_change_a_result_changes_the_digest(edit: Edit, name: str, old: str, new: str) -> None:
    before = digest_of(["invented.method"])
    assert edit(name, old, new) != before


def test_the_measuring_reaches_what_decides_and_not_the_methods() -> None:
    found = reached([MEASURING])
    assert {"trimtab.engine.sweep", "trimtab.measure.perplexity", "trimtab.data.windows", "trimtab.anatomy.sites"} <= found.keys()
    assert not [name for name in found if name.startswith("trimtab.methods.") or name in SILENT]
    assert not {"trimtab.measure.side_store", "trimtab.formats.pyramid"} & found.keys()
    gptq = reached([get("gptq").__module__])
    assert {"trimtab.tensors.columns", "trimtab.formats.grouped"} <= gptq.keys()


def test_how_models_are_trained_decides_no_result_of_what_is_rounded() -> None:
    rounded, trained = (reached(modules_of([Recipe.of(one)])) for one in ("gptq", "gptq -> recover"))
    assert not [name for name in rounded if name.endswith((".trainer", ".school", ".teaching", ".searching"))]
    assert {"trimtab.host.trainer", "trimtab.host.school", "trimtab.engine.teaching"} <= trained.keys()
    assert rounded.keys() < trained.keys()


@pytest.mark.parametrize("id", [id for id in ids() if kind(get(id)) in _RUNNERS])
def test_what_carries_a_method_out_counts(id: str) -> None:
    of_kind = kind(get(id))
    assert _RUNNERS[of_kind].__module__ in reached([MEASURING, *RUNNERS.get(of_kind, ())])


def test_where_candidates_are_judged_the_search_counts() -> None:
    recipe = Recipe.of("gptq by evopress(levels='bits=2,3', mean=2.5)")
    assert Trials in recipe.steps[0].by.needs
    assert set(RUNNERS[SEARCH]) <= reached(modules_of([recipe])).keys()
    assert not set(RUNNERS[SEARCH]) & reached(modules_of([Recipe.of("wanda by owl(sparsity=0.5)")])).keys()


def test_what_is_named_is_there() -> None:
    assert [name for name in SILENT.union(*RUNNERS.values()) if source(name) is None] == []

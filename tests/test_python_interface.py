"""`import trimtab as tt`: the names that users have, what they take, and what importing costs."""

import inspect
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import trimtab as tt
from trimtab.core.errors import UsageError
from trimtab.core.registry import get, ids
from trimtab.host.compress import as_recipe
from trimtab.testing.folders import tiny_folder

HEAVY = ("torch", "transformers", "numpy", "yaml", "rich")
QUICK = {"windows": 3, "length": 16}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, the same rounded, and a text."""
    folder = tmp_path_factory.mktemp("interface")
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefgh", k=draw.randint(2, 7))) for _ in range(200)]
    text = "\n\n".join(" ".join(draw.choices(words, k=30)) for _ in range(60))
    (folder / "text.txt").write_text(text, encoding="utf-8")
    tiny_folder(folder / "base", num_hidden_layers=1)
    tt.compress(folder / "base", tt.methods.Rtn(bits=4, group_size=0), out=folder / "rounded")
    return folder


def test_importing_is_cheap_and_complete():
    script = (
        "import sys, trimtab as tt\n"
        f"assert not [name for name in {HEAVY} if name in sys.modules]\n"
        "assert set(tt.__all__) <= set(dir(tt))\n"
        "assert tt.UsageError.__module__ == 'trimtab.core.errors'\n"
        "assert 'torch' not in sys.modules\n"
        "assert tt.methods.Gptq(bits=3).bits == 3\n"
        "assert 'transformers' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("name", tt.__all__)
def test_every_name_is_there_and_says_what_it_is(name):
    assert (getattr(tt, name).__doc__ or "").strip()


def test_a_name_that_there_is_not():
    with pytest.raises(AttributeError, match="no attribute 'compres'"):
        _ = tt.compres  # type: ignore[attr-defined]


@pytest.mark.parametrize("id", ids())
def test_every_method_is_there_by_its_class(id):
    method = get(id)
    assert getattr(tt.methods, method.__name__) is method
    assert method.__name__ in dir(tt.methods)


@pytest.mark.parametrize("name", ["Gpqt", "gptq", "quantize"])
def test_no_other_name_is_a_method(name):
    with pytest.raises(AttributeError, match=r"no method class .*did you mean|no method class .*known are"):
        tt.methods.__getattr__(name)


def test_rooms_of_methods_can_still_be_imported():
    from trimtab.methods import quantize

    assert quantize.__doc__


def test_whatever_a_recipe_may_be(tmp_path):
    gptq = tt.methods.Gptq(bits=3)
    (tmp_path / "recipe.yaml").write_text("steps: [{gptq: {bits: 3}}]", encoding="utf-8")
    for asked in (gptq, tt.Step(gptq), [gptq], (gptq,), "gptq(bits=3)", tmp_path / "recipe.yaml", str(tmp_path / "recipe.yaml")):
        assert as_recipe(asked) == tt.Recipe(gptq), asked
    two = [tt.methods.Wanda(sparsity=0.5), gptq]
    assert as_recipe(two) == tt.Recipe.of("wanda(sparsity=0.5) -> gptq(bits=3)")
    with pytest.raises(UsageError, match="at least one step"):
        as_recipe([])


def test_measure_takes_a_name_or_a_model(place):
    how = {"source": str(place / "text.txt"), "speed": False, **QUICK}
    named = {m.name: m for m in tt.measure(place / "rounded", **how)}
    model, tokenizer = tt.load(place / "rounded")
    opened = {m.name: m for m in tt.measure(model, tokenizer, **how)}
    assert named["perplexity"] == opened["perplexity"]
    assert named["perplexity"].n == 3 * 15, "tokens that have one before them"
    with pytest.raises(UsageError, match="measured with its tokenizer"):
        tt.measure(model)


def test_measure_is_a_function_and_a_package():
    import trimtab.measure.paired

    assert trimtab.measure.paired.paired_difference
    assert inspect.signature(tt.measure) == inspect.signature(tt.evaluate)
    assert next(iter(inspect.signature(tt.measure).parameters)) == "model"


def test_compare_takes_its_setting_as_keywords(place):
    told = tt.compare(place / "base", place / "rounded", text=str(place / "text.txt"), samples=False, **QUICK)
    assert told.setting["texts"] == (str(place / "text.txt"),)
    (other,) = told.others
    assert other["name"] == "rounded"
    assert other["against_base"]["perplexity"]["n"] == 3
    with pytest.raises(UsageError, match=r"tasks=\('sciq',\)"):
        tt.compare(place / "base", place / "rounded", tasks="sciq")


def test_load_takes_assets_and_says_which_there_are():
    with pytest.raises(UsageError, match="did you mean"):
        tt.load("asset:smollm2-135")


def test_what_was_compressed_in_memory_can_be_saved(place, tmp_path):
    done = tt.compress(place / "base", tt.methods.Rtn(bits=4, group_size=0))
    assert done.folder is None
    tt.save(done.model, done.tokenizer, tmp_path / "saved")
    ids = torch.arange(3, 19)[None]
    model, _ = tt.load(tmp_path / "saved")
    assert torch.equal(model(ids).logits, tt.load(place / "rounded")[0](ids).logits)


@pytest.mark.parametrize(
    ("recipe", "packed", "told"),
    [("magnitude", False, True), ("magnitude", True, False), ("magnitude -> rtn", False, False), ("rtn", False, False)],
)
def test_a_report_says_where_zeros_save_nothing(place: Path, tmp_path: Path, recipe: str, packed: bool, told: bool) -> None:
    report = tt.compress(place / "base", recipe, out=tmp_path / "out", packed=packed).report
    (*said,) = (note for note in report.notes if "their zeros" in note)
    assert len(said) == told
    if told:
        assert said[0].startswith(f"{len(report.receipts)} sparse matrices")
        assert said[0] in (tmp_path / "out" / "receipt.json").read_text()
        assert type(report)(**{**vars(report)}).notes == report.notes

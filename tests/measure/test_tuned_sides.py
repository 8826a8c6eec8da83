"""Sides of claims that are trained: the same rows for everyone, a rate of one's own, and a place in the store."""

from dataclasses import replace
from pathlib import Path

import pytest

from trimtab.core.card import Claim
from trimtab.core.errors import UsageError
from trimtab.core.recipe import Recipe
from trimtab.data import text
from trimtab.measure import tuned_sides
from trimtab.measure.claims import run_claim
from trimtab.measure.side_store import modules_of
from trimtab.measure.sides import Setting, measure_side
from trimtab.measure.tuned_sides import COURSE, is_tuned, measure_tuned_side
from trimtab.testing.folders import tiny_folder


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    """A language of two sentences, which ten steps begin to teach."""
    sentences = ["the cat sat on the mat", "a dog ran in the park"] * 60
    for name in ("asset:gsm8k", "asset:gsm8k-rest", "asset:squad-drop"):
        monkeypatch.setitem(text.SOURCES, name, lambda: sentences)
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tuned_sides, "COURSE", replace(COURSE, steps=10, batch=4, length=16))
    model = str(tiny_folder(tmp_path / "tiny", num_hidden_layers=1))
    return Setting(model, "asset:gsm8k-rest", windows=3, length=16, seeds=(0,))


def test_a_trained_side_is_better_than_the_model_as_it_came(setting: Setting) -> None:
    before = measure_side(setting.model, None, setting)
    after = measure_tuned_side(setting.model, Recipe.of("rtn(bits=4, group_size=0) -> lora(rank=4)"), setting)
    assert after.losses.mean() < before.losses.mean()
    assert after.bits < before.bits
    assert after.seeded


def test_a_claim_about_adapters_is_run(setting: Setting) -> None:
    claim = Claim("small-beats-nothing", "pissa(rank=8)", "<", "rtn(bits=8, group_size=0)")
    line = run_claim("pissa", claim, setting)
    assert line["status"] == "holds"
    assert line["n"] == 3
    assert run_claim("pissa", claim, setting)["left_ppl"] == line["left_ppl"], "the second time it is remembered"


def test_what_is_trained_comes_last() -> None:
    assert is_tuned(Recipe.of("rtn(bits=3) -> lora"))
    assert not is_tuned(Recipe.of("rtn(bits=3)"))
    with pytest.raises(UsageError, match="only the last step can be one that is trained"):
        is_tuned(Recipe.of("lora -> rtn(bits=3)"))
    assert "trimtab.measure.tuned_sides" in modules_of([Recipe.of("lora")])
    assert "trimtab.measure.tuned_sides" not in modules_of([Recipe.of("rtn")])

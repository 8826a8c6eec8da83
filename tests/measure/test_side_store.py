"""A side is measured once: whatever it depends on is in its key, and nothing else is."""

import random
from collections import Counter
from dataclasses import replace
from itertools import chain
from pathlib import Path
from threading import Event, Thread

import pytest
import torch

from trimtab.core.progress import Progress
from trimtab.core.recipe import Calibration, Recipe
from trimtab.host.locks import alone, is_taken
from trimtab.measure import side_store
from trimtab.measure.side_store import Ground, SideStore, text_digest
from trimtab.measure.sides import Setting, Side
from trimtab.testing.folders import tiny_folder

RTN, WANDA = "rtn(bits=4, group_size=16)", "wanda(sparsity=0.5)"
Measured = Counter[tuple[str, int]]


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    text_digest.cache_clear()
    draw = random.Random(0)
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join("".join(draw.choices("abcdefgh ", k=100)) for _ in range(20)), encoding="utf-8")
    model = tiny_folder(tmp_path / "model", num_hidden_layers=1)
    return Setting(str(model), str(text), 3, 16, Calibration(str(text), 64, 16), (0, 1))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Measured:
    """What was really measured: (expression, seed) -> how often."""
    counts: Measured = Counter()
    really = side_store.measure_side

    def counting(folder: str, recipe: Recipe | None, *rest: object) -> Side:
        counts[str(recipe), recipe.seed if recipe else -1] += 1
        return really(folder, recipe, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(side_store, "measure_side", counting)
    return counts


def test_a_second_time_nothing_is_measured(setting: Setting, measured: Measured) -> None:
    first = SideStore(setting).sides((None, WANDA, RTN))
    again = SideStore(setting).sides((None, WANDA, RTN))
    assert measured == {("None", -1): 1, ("wanda()", 0): 1, ("wanda()", 1): 1, (str(Recipe.of(RTN)), 0): 1}
    assert [len(sides) for sides in first] == [1, 2, 2]
    for one, other in zip(chain(*first), chain(*again), strict=True):
        assert torch.equal(one.losses, other.losses)
        assert one.losses.dtype == torch.float64
        assert replace(one, losses=None) == replace(other, losses=None)  # type: ignore[arg-type]


def test_what_no_seed_can_change_is_measured_once_for_all_seeds(setting: Setting, measured: Measured) -> None:
    SideStore(setting).sides((RTN,))
    SideStore(replace(setting, seeds=(7, 8))).sides((RTN,))
    assert sum(measured.values()) == 1


def test_a_side_without_calibration_does_not_depend_on_it(setting: Setting, measured: Measured) -> None:
    shown = replace(setting, calibration=replace(setting.calibration, tokens=96), seeds=(0,))
    SideStore(setting).sides((RTN,))
    SideStore(shown).sides((RTN,))
    assert sum(measured.values()) == 1
    SideStore(shown).sides((WANDA,))
    SideStore(replace(setting, seeds=(0,))).sides((WANDA,))
    assert sum(measured.values()) == 3


@pytest.mark.parametrize("change", ["model", "text", "windows", "length", "code", "library"])
def test_what_it_depends_on_makes_it_another(
    setting: Setting, measured: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    SideStore(setting).sides((None,))
    match change:
        case "model":
            setting = replace(setting, model=str(tiny_folder(tmp_path / "other", seed=1, num_hidden_layers=1)))
        case "text":
            Path(setting.text).write_text("another text\n\n" * 30, encoding="utf-8")
            text_digest.cache_clear()
        case "windows" | "length":
            setting = replace(setting, **{change: 4})
        case "code":
            monkeypatch.setattr(side_store, "digest_of", lambda modules: "other")
        case "library":
            monkeypatch.setattr(side_store, "versions", lambda: {"torch": "0"})
    SideStore(setting).sides((None,))
    assert sum(measured.values()) == 2


def test_the_same_files_elsewhere_are_the_same_model(setting: Setting, measured: Measured, tmp_path: Path) -> None:
    SideStore(setting).sides((None,))
    moved = Path(setting.model).rename(tmp_path / "moved")
    SideStore(replace(setting, model=str(moved))).sides((None,))
    assert sum(measured.values()) == 1


def test_what_is_missing_is_counted_and_progress_counts_sides(setting: Setting, measured: Measured) -> None:
    store, seen = SideStore(setting, Ground.of(setting)), list[Progress]()
    assert store.missing((None, WANDA, RTN)) == 5
    store.sides((WANDA,))
    assert store.missing((None, WANDA, RTN)) == 3
    store.sides((None, WANDA, RTN), seen.append)
    assert store.missing((None, WANDA, RTN)) == 0
    assert [(now.done, now.total) for now in seen if now.phase == "sides"] == [(n, 5) for n in range(1, 6)]
    assert {now.phase for now in seen} > {"sides"}  # what happens inside of a side is passed on


def test_a_side_that_is_being_measured_elsewhere_comes_last(setting: Setting, measured: Measured) -> None:
    store, first = SideStore(replace(setting, seeds=(0,))), Event()
    lock = store._lock(Recipe.of(WANDA, setting.calibration))
    asked = Thread(target=lambda: store.sides((WANDA, RTN), lambda now: first.set() if now.phase == "sides" else None))
    with alone(lock):
        assert is_taken(lock)
        asked.start()
        assert first.wait(60)
        assert [name for name, _ in measured] == [str(Recipe.of(RTN))]
        assert asked.is_alive()
    asked.join(60)
    assert not asked.is_alive()
    assert not is_taken(lock)
    assert [name for name, _ in measured] == [str(Recipe.of(RTN)), "wanda()"]

"""Documentation speaks of the real model and text; while it is tested these names mean a tiny model and a few words."""

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers.utils import logging

import trimtab.host.compress
import trimtab.measure
from trimtab.data import text, windows
from trimtab.host import gguf_import
from trimtab.host.homegrown import FAMILY, Homegrown
from trimtab.host.pretrain import Course
from trimtab.measure import bench, gather
from trimtab.testing.folders import tiny_folder

sys.path.append(str(Path(__file__).resolve().parent.parent.parent / "docs"))  # what writes the generated pages

LONGEST, MOST = 32, 768  # tokens per window, tokens in all: more than a recipe of 16 windows shows, since searches hold some out
GROWN = Homegrown(2, 128, 2, 1, 128, 300, Course(steps=4, batch=2, length=LONGEST))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def words() -> list[str]:
    draw = random.Random(0)
    vocabulary = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 8))) for _ in range(300)]
    return [" ".join(draw.choices(vocabulary, k=40)) for _ in range(200)]


@pytest.fixture
def small_world(tiny_model: Path, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working folder in which the names of the documentation are small; nothing is fetched."""

    def calibration(source, tokenizer, tokens, length, seed):
        return windows.calibration_windows(source, tokenizer, min(tokens, MOST), min(length, LONGEST), seed)

    def evaluation(source, tokenizer, count, length, seed, stride=None):
        shift = stride and min(stride, LONGEST // 2)
        return windows.evaluation_windows(source, tokenizer, min(count, 4), min(length, LONGEST), seed, shift)

    for name in text.SOURCES:
        monkeypatch.setitem(text.SOURCES, name, lambda: words)
    monkeypatch.setattr(gguf_import, "asset_model", lambda: tiny_model)
    for name in FAMILY:
        monkeypatch.setitem(FAMILY, name, GROWN)
    monkeypatch.setattr(trimtab.host.compress, "calibration_windows", calibration)
    monkeypatch.setattr("trimtab.cli.compress._cores", lambda: 1)  # a second process takes longer to start than to judge
    monkeypatch.setattr(bench, "SAME_TOP", 0.9)  # random weights have near ties
    for place in (trimtab.measure, gather):
        monkeypatch.setattr(place, "evaluation_windows", evaluation)
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    yield here
    logging.set_verbosity(verbosity)
    if bars:
        logging.enable_progress_bar()

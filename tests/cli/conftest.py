"""A tiny model folder, a text, and the command line as a function."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from transformers.utils import logging
from typer.testing import CliRunner, Result

from trimtab.cli.main import app
from trimtab.testing.folders import tiny_folder

Command = Callable[..., Result]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("models") / "tiny", num_hidden_layers=2)


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 8))) for _ in range(300)]
    file = tmp_path_factory.mktemp("texts") / "text.txt"
    file.write_text("\n\n".join(" ".join(draw.choices(words, k=40)) for _ in range(500)), encoding="utf-8")
    return file


@pytest.fixture(autouse=True)
def hushed() -> Iterator[None]:
    """In a process of its own the command silences transformers before importing it; here that is too late."""
    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    yield
    logging.set_verbosity(verbosity)
    if bars:
        logging.enable_progress_bar()


@pytest.fixture
def trimtab() -> Command:
    def call(*words: object) -> Result:
        return CliRunner().invoke(app, [str(word) for word in words])

    return call


@pytest.fixture(scope="session")
def shown(text: Path) -> list[str]:
    """A calibration set that takes no time."""
    return ["--text", str(text), "--tokens", "256", "--length", "32"]

"""The benchmark of one folder at many sizes: what is opened is smaller, and the page says by how much it is worse."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import anysize

from trimtab.core.recipe import Calibration, Recipe
from trimtab.host.compress import compress
from trimtab.testing.folders import tiny_folder


@pytest.fixture(scope="module")
def stack(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("anysize")
    text = place / "text.txt"
    text.write_text("\n\n".join(f"passage {n}, which has some words in it" for n in range(40)), encoding="utf-8")
    recipe = Recipe.of("bitstack(blocks=4, rank=1)", Calibration(str(text), 128, 32))
    compress(tiny_folder(place / "model"), recipe, out=place / "stack")
    return place / "stack"


def test_less_room_means_fewer_bytes_and_bits(stack):
    ids = torch.arange(64).view(2, 32)
    small, whole = (anysize.opened(stack, size, ids) for size in ("85%", "100%"))
    assert small["bytes"] <= 0.85 * whole["bytes"] < whole["bytes"]
    assert small["bits"] < whole["bits"]
    assert len(small["losses"]) == 2


def test_the_page_compares_every_size_with_the_one_before():
    sides = [
        {"size": size, "bytes": 1e6 * size, "bits": size / 20, "losses": [loss, loss + 0.5]}
        for size, loss in ((60, 2.0), (100, 1.0))
    ]
    lines = [{**side, "perplexity": 3.0, "stderr": 0.1, "opening": 0.2} for side in sides]
    setting = dict.fromkeys(("model", "recipe", "windows", "length", "shown", "seed", "judged_windows", "judged", "history"), "x")
    rows = [row for row in anysize.page({**setting, "seconds": 1.0, "sizes": lines}).splitlines() if row.startswith("| ")]
    assert [row.split(" | ")[4] for row in rows[1:]] == ["", "-1.0000 (-1.0000 to -1.0000)"]

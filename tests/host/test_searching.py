"""Searches from a folder to a folder: who judges makes no difference, a stopped one goes on, calibration stays as it was."""

import importlib.util
import json
import random
import sys
import time
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from trimtab.cli.main import app
from trimtab.cli.request import Request, understand
from trimtab.core.errors import UsageError
from trimtab.core.recipe import Calibration, Recipe
from trimtab.host import manifest
from trimtab.host.compress import compress
from trimtab.host.keeping import is_kept, search_of
from trimtab.testing.folders import tiny_folder

SEARCH = "rtn(group_size=32) by evopress(levels='bits=2,3,4', mean=3, generations=3, offspring=6, held_out=96)"


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    draw = random.Random(0)
    file = tmp_path_factory.mktemp("texts") / "text.txt"
    file.write_text("\n\n".join(" ".join("".join(draw.choices("abcdefgh", k=5)) for _ in range(40)) for _ in range(40)))
    return file


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("models") / "tiny", num_hidden_layers=2)


def recipe(text: Path, steps: str = SEARCH) -> Recipe:
    return Recipe.of(steps, Calibration(text=str(text), tokens=64, length=32))


def files(folder: Path) -> dict[str, str]:
    names = sorted(p.name for p in folder.iterdir() if p.name not in ("README.md", "receipt.json", manifest.NAME))
    return dict(zip(names, manifest.digests(folder, names), strict=True))


def counted(notes: list[str]) -> str:
    """What a search says that it did, without the time that took."""
    return next(note for note in notes if "were judged" in note).partition(", in ")[0]


@pytest.fixture(scope="module")
def serial(tmp_path_factory, model, text) -> Path:
    out = tmp_path_factory.mktemp("serial") / "out"
    done = compress(model, recipe(text), out)
    assert any("were judged" in note for note in done.report.notes)
    assert not search_of(out).exists()
    return out


@pytest.mark.slow
def test_two_processes_find_the_same(tmp_path, model, text, serial) -> None:
    done = compress(model, recipe(text), tmp_path / "out", workers=2, keep_levels=tmp_path / "levels")
    assert files(tmp_path / "out") == files(serial)
    assert counted(done.report.notes) == counted(json.loads((serial / "receipt.json").read_text())["notes"])
    outcomes = (tmp_path / "levels" / "outcomes.jsonl").read_text()
    compress(model, recipe(text), tmp_path / "again", keep_levels=tmp_path / "levels")
    assert files(tmp_path / "again") == files(serial)
    assert (tmp_path / "levels" / "outcomes.jsonl").read_text() == outcomes
    assert not list((tmp_path / "levels").glob("model-*"))


@pytest.mark.slow
def test_judges_do_not_outlive_a_killed_search(tmp_path, model, text) -> None:
    long = SEARCH.replace("generations=3", "generations=1000")
    words = "import sys; from trimtab import compress; from trimtab.core.recipe import Recipe; from pathlib import Path"
    (tmp_path / "recipe.yaml").write_text(recipe(text, long).yaml())
    run = f"{words}; compress(sys.argv[1], Path(sys.argv[2]), sys.argv[3], workers=2)"
    search = psutil.Popen([sys.executable, "-c", run, model, tmp_path / "recipe.yaml", tmp_path / "out"])
    try:
        while len(judges := search.children()) < 3:  # and what keeps count of their shared resources
            assert search.poll() is None, "the search ended by itself"
            time.sleep(0.1)
    finally:
        search.kill()
        search.wait()
    _, left = psutil.wait_procs(judges, timeout=60)
    assert not left


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs trimtab[ray]")
def test_a_ray_cluster_finds_the_same(tmp_path, model, text, serial) -> None:
    compress(model, recipe(text), tmp_path / "out", workers=2, ray=True)
    assert files(tmp_path / "out") == files(serial)


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="ray is there")
def test_without_ray_it_says_what_to_install(tmp_path, model, text) -> None:
    with pytest.raises(UsageError, match=r"trimtab\[ray\]"):
        compress(model, recipe(text), tmp_path / "out", ray=True)


def test_a_stopped_search_goes_on(tmp_path, model, text, serial) -> None:
    out = tmp_path / "out"

    def stop(now) -> None:
        if now.phase == "search" and now.detail == "candidate 7":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(model, recipe(text), out, watch=stop)
    assert is_kept(out)
    before = (search_of(out) / "outcomes.jsonl").read_text().splitlines()
    assert len(before) == 7
    seen = []
    compress(model, recipe(text), out, watch=lambda now: seen.append(now) if now.phase == "search" else None)
    whole = counted(json.loads((serial / "receipt.json").read_text())["notes"])
    assert whole.endswith(f"; {int(seen[-1].detail.split()[-1]) + 7} were judged")
    assert files(out) == files(serial)
    assert not search_of(out).exists()
    assert not is_kept(out)


def test_fresh_forgets_what_was_judged(tmp_path, model, text) -> None:
    out = tmp_path / "out"
    search_of(out).mkdir()
    (search_of(out) / "old").write_text("")
    compress(model, recipe(text, "evopress_blocks(drop=1, generations=1, offspring=1, held_out=32)"), out, fresh=True)
    assert not search_of(out).exists()


def test_what_is_held_out_takes_nothing_from_calibration(tmp_path, model, text, serial) -> None:
    """The same matrices as a recipe without a search that has the same bits in the end."""
    compress(model, recipe(text, "gptq(group_size=32) by uniform(mean=3)"), tmp_path / "a")
    compress(
        model,
        recipe(text, "gptq(group_size=32) by evopress(generations=1, offspring=1, held_out=32, levels='bits=3,4')"),
        tmp_path / "b",
    )
    a, b = files(tmp_path / "a"), files(tmp_path / "b")
    assert a["model.safetensors"] == b["model.safetensors"]


def test_judging_takes_the_whole_model_in_memory(tmp_path, model, text) -> None:
    with pytest.raises(UsageError, match="judges the whole model"):
        compress(model, recipe(text), tmp_path / "out", offload=tmp_path / "there")
    with pytest.raises(UsageError, match="at least 1"):
        compress(model, recipe(text), tmp_path / "out", workers=0)


def words(*given: str, **asked) -> str:
    return str(understand(Request(("model", *given), (), **asked)).recipes[0])


def test_words_become_steps() -> None:
    asked = {"search": "evopress", "levels": "gptq(clip=True):bits=2,3,4"}
    assert words("--size", "50%", **asked) == "gptq(clip=True) by evopress(size='50%')"
    asked = {"search": "rd_prune", "levels": "wanda(pattern='unstructured'):sparsity=0.4,0.6"}
    assert words("--mean", "0.5", **asked) == "wanda() by rd_prune(levels='sparsity=0.4,0.6', mean=0.5)"
    assert words("--sparsity", "0.6", search="owl", levels="sparsegpt") == "sparsegpt() by owl(sparsity=0.6)"
    assert words(search="sv_nup", levels="wanda(pattern='2:4')") == "wanda(pattern='2:4') by sv_nup()"
    assert words("--drop", "2", search="evopress", levels="blocks") == "evopress_blocks(drop=2)"


@pytest.mark.parametrize(
    ("given", "asked", "said"),
    [
        ((), {"search": "evopress"}, "--search needs --levels"),
        ((), {"levels": "gptq:bits=2,3"}, "--levels"),
        ((), {"search": "evopres", "levels": "gptq:bits=2,3"}, "did you mean 'evopress'"),
        ((), {"search": "evopress", "levels": "gptp:bits=2,3"}, "did you mean"),
        ((), {"search": "evopress", "levels": "gptq:sparsity=0.1,0.2"}, "no mixture"),
        ((), {"search": "gptq", "levels": "gptq"}, "no allocator"),
        ((), {"search": "rd_prune", "levels": "blocks"}, "rd_prune_blocks"),
        (("--bitz", "3"), {"search": "evopress", "levels": "gptq:bits=2,3"}, "evopress has no knob --bitz"),
        ((), {"search": "evopress", "levels": "gptq:bits=2,3,4", "method": "gptq"}, "give one of"),
    ],
)
def test_words_that_make_no_sense(given, asked, said) -> None:
    with pytest.raises(UsageError, match=said):
        words(*given, **asked)


def test_the_command(tmp_path, model, text) -> None:
    shown = [
        "--text",
        str(text),
        "--tokens",
        "64",
        "--length",
        "32",
        "--held-out",
        "64",
        "--generations",
        "2",
        "--offspring",
        "3",
    ]
    call = ["compress", str(model), "--search", "evopress", "--levels", "rtn(group_size=32):bits=2,3,4", *shown]
    planned = CliRunner().invoke(app, [*call, "--mean", "3", "--dry-run"])
    assert planned.exit_code == 0, planned.output
    assert "search: 17 candidates at most" in planned.output
    assert "after 3 compressions" in planned.output
    done = CliRunner().invoke(app, [*call, "--mean", "3", "--workers", "1", "-o", str(tmp_path / "o"), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["report"]["recipe"]["steps"][0]["by"]["evopress"]["levels"] == "bits=2,3,4"

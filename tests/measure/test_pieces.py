"""A measurement that is stopped goes on behind its last piece, and says the very same; nothing of another one is taken."""

import json
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from trimtab.host.checkpoint import load
from trimtab.measure import agreement, measure, perplexity, pieces, score
from trimtab.measure.compare import compare
from trimtab.measure.pieces import Pieces, depends_on
from trimtab.measure.setting import Setting
from trimtab.testing.folders import tiny_folder

OF_THE_PROCESS = ("peak memory", "prefill", "decode")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "measured" / "pieces"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder, draw = tmp_path_factory.mktemp("pieces"), random.Random(0)
    words = ("".join(draw.choices("abcdefgh", k=draw.randint(2, 7))) for _ in range(3000))
    (folder / "text.txt").write_text("\n\n".join(" ".join(next(words) for _ in range(30)) for _ in range(100)))
    items = [{"context": "ab " * draw.randint(1, 60), "continuations": [f" {n}", " uvw"], "gold": 0} for n in range(40)]
    (folder / "items.jsonl").write_text("\n".join(map(json.dumps, items)))
    tiny_folder(folder / "base", num_hidden_layers=2)
    tiny_folder(folder / "other", seed=1, num_hidden_layers=2)
    return folder


@contextmanager
def counted(module, name: str, stop: int | None = None) -> Iterator[list[int]]:
    """Yields how often a piece of work was done; it is interrupted after `stop` of them."""
    done: list[int] = []
    work = getattr(module, name)

    def one(*given, **named):
        if len(done) == stop:
            raise KeyboardInterrupt
        done.append(1)
        return work(*given, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, one)
        yield done


def measured(place: Path, **changed) -> list[dict]:
    asked = {
        "source": str(place / "text.txt"),
        "windows": 20,
        "length": 32,
        "speed": False,
        "tasks": (str(place / "items.jsonl"),),
    }
    found = measure(place / "base", **{**asked, **changed})
    return [asdict(one) for one in found if one.name not in OF_THE_PROCESS]


def compared(place: Path) -> dict:
    asked = Setting((str(place / "text.txt"),), 20, 32, (str(place / "items.jsonl"),), samples=False)
    found = compare(str(place / "base"), [str(place / "other")], asked).json()
    return {name: part for name, part in found.items() if name != "made"}


@pytest.mark.parametrize(
    ("module", "name", "told"),
    [
        (perplexity, "_losses", measured),
        (score, "_answers", measured),
        (agreement, "_compared", compared),
    ],
)
def test_only_what_is_missing_is_measured(place, cache, tmp_path, monkeypatch, module, name, told):
    with counted(module, name) as whole:
        wanted = told(place)
    assert len(whole) > 3
    assert list(cache.iterdir()) == []
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "another"))
    with pytest.raises(KeyboardInterrupt), counted(module, name, stop=2):
        told(place)
    with counted(module, name) as rest:
        assert told(place) == wanted
    assert len(rest) == len(whole) - 2
    assert list((tmp_path / "another/measured/pieces").iterdir()) == []


def test_a_pass_over_one_model_is_kept_in_pieces(place):
    model, _ = load(place / "base")
    windows = torch.arange(20 * 16).reshape(20, 16) % 200
    wanted = agreement.predictions(model, windows)
    with pytest.raises(KeyboardInterrupt), counted(agreement, "_seen", stop=2):
        agreement.predictions(model, windows, keep=Pieces({"model": 1}))
    with counted(agreement, "_seen") as rest:
        found = agreement.predictions(model, windows, keep=Pieces({"model": 1}))
    assert len(rest) == 3
    assert all(torch.equal(one, other) for one, other in zip(vars(found).values(), vars(wanted).values(), strict=True))


@pytest.mark.parametrize("changed", [{"seed": 1}, {"length": 33}, {"source": "other.txt"}])
def test_nothing_of_another_measurement_is_taken(place, changed):
    if "source" in changed:
        (place / "other.txt").write_text((place / "text.txt").read_text().replace("a", "b"))
        changed = {"source": str(place / "other.txt")}
    with counted(perplexity, "_losses") as whole:
        wanted = measured(place, **changed)
    with pytest.raises(KeyboardInterrupt), counted(perplexity, "_losses", stop=3):
        measured(place)
    with counted(perplexity, "_losses") as done:
        assert measured(place, **changed) == wanted
    assert len(done) == len(whole)


def test_all_that_a_piece_depends_on_is_in_its_key(place, monkeypatch):
    now = depends_on(place / "base")
    assert now == depends_on(place / "base")
    others = [depends_on(place / "other"), depends_on(place / "base", "bfloat16"), depends_on(place / "base", None, "cuda")]
    for name in ("digest_of", "versions", "machine"):
        with monkeypatch.context() as patch:
            patch.setattr(pieces, name, lambda *_: "another")
            others.append(depends_on(place / "base"))
    assert len({json.dumps(key, sort_keys=True) for key in [now, *others]}) == 7


def test_a_damaged_piece_is_measured_again(place, cache):
    wanted = measured(place)
    with pytest.raises(KeyboardInterrupt), counted(perplexity, "_losses", stop=3):
        measured(place)
    damaged = sorted(cache.glob("*/*.safetensors"))[0]
    damaged.write_bytes(damaged.read_bytes()[:-9])
    with counted(perplexity, "_losses") as rest:
        assert measured(place) == wanted
    assert len(rest) == 3


def test_where_nothing_can_be_written_it_is_said_once_and_measured_all_the_same(place, tmp_path, monkeypatch):
    wanted = measured(place)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "file"))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert measured(place) == wanted
    assert sum("nothing is kept to go on from" in str(one.message) for one in said) == 1

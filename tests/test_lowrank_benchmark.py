"""The tables of factored models: what they ask for can be read, sides are of equal bytes, and transforms are found."""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import lowrank
import lowrank_speed
import oneshot
from ledger import Book

from trimtab.core.places import Role, Site
from trimtab.core.recipe import Recipe
from trimtab.engine import by_factor
from trimtab.engine.storage import promised
from trimtab.formats.plain import stored_bytes
from trimtab.measure.sides import Side
from trimtab.testing.folders import byte_tokenizer, tiny_folder
from trimtab.testing.tiny import tiny

GROUPS = 8


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> lowrank.Stored:
    """Of a small model with key and value matrices of another shape than the rest."""
    return lowrank.planned(str(tiny_folder(tmp_path_factory.mktemp("planned") / "tiny")))


@pytest.mark.parametrize("name", [*lowrank.REMOVED])
def test_its_recipes_can_be_read(name: str) -> None:
    found = lowrank.recipes(name)
    assert len(set(found)) == len(found) >= 5
    assert all(Recipe.of(recipe).steps for recipe in found)


@pytest.mark.parametrize("name", [*lowrank.REMOVED])
def test_whoever_chooses_ranks_stands_beside_uniform_ranks_of_the_same_method(name: str) -> None:
    found = lowrank.recipes(name)
    keep = lowrank.REMOVED[name]
    partners = {recipe: lowrank.uniform(recipe) for recipe in found if " by " in recipe}
    assert partners[f"svd by welore(keep={keep})"] == f"svd(keep={keep})"
    assert partners[f"saes_svd by d_rank(keep={keep})"] == f"saes_svd(keep={keep})"
    assert {*partners.values()} <= {*found}
    for chosen, same in partners.items():
        (one,), (other,) = Recipe.of(chosen).steps, Recipe.of(same).steps
        assert type(one.method) is type(other.method)
        assert one.by.keep == other.method.keep
    assert lowrank.uniform(f"svd(keep={keep})") is None


@pytest.mark.parametrize("bits", lowrank.BUDGETS.values())
def test_no_side_stores_more_than_the_codes_alone(bits: int, stored: lowrank.Stored) -> None:
    """What is factored holds as much as it may: the next step of its knob would be too much, if it changes anything."""
    alone, *others = lowrank.coded(bits, GROUPS, stored)
    assert alone == f"gptq(bits={bits}, group_size={GROUPS})"
    assert len({*others}) == len(others) >= 6
    assert {re.sub(r"\(.*?\)", "", recipe) for recipe in others} == {"svd_llm -> gptq", "gptq -> lqer", "gptq -> eora"}
    for recipe in others:
        assert 0.5 * stored(alone) < stored(recipe) <= stored(alone)
        knob, value = re.findall(r"(keep|rank)=([\d.]+)", recipe)[0]
        step = 0.001 if knob == "keep" else 1
        for steps in range(1, 200):
            more = f"{float(value) + step * steps:.3f}" if knob == "keep" else str(int(value) + steps)
            if knob == "keep" and float(more) >= 1:
                break  # the matrix itself
            if stored(wider := recipe.replace(f"{knob}={value}", f"{knob}={more}")) != stored(recipe):
                assert stored(wider) > stored(alone)
                break


def test_factors_with_a_scale_a_row_miss_no_half_per_cent() -> None:
    """In the shapes of the model that is measured; bits are counted as its matrices store them, by the plan of one block."""
    shapes = [(576, 576)] * 2 + [(192, 576)] * 2 + [(1536, 576)] * 2 + [(576, 1536)]
    stored = counted(shapes)
    for bits in lowrank.BUDGETS.values():
        alone, *others = lowrank.coded(bits, lowrank.GROUPS, stored)
        rows = [recipe for recipe in others if recipe.endswith("group_size=0)")]
        assert rows
        assert all(0.995 * stored(alone) <= stored(recipe) <= stored(alone) for recipe in rows)


def counted(shapes: list[tuple[int, int]]) -> lowrank.Stored:
    """What methods promise for plain matrices of these shapes."""
    sites = [Site(f"layers.0.{number}", Role.OTHER, shape, block=0) for number, shape in enumerate(shapes)]

    def stored(recipe: str) -> float:
        total = 0
        for site in sites:
            spec = {"kind": "dense", "shape": [*site.shape], "dtype": "bfloat16"}
            for step in Recipe.of(recipe).steps:
                for place in by_factor.factors(step.method, site, spec) or [site]:
                    step.method.fits(place)
                spec = promised(step.method, site, spec, packed=False)
            total += 8 * stored_bytes(spec)
        return total / sum(out * inputs for out, inputs in shapes)

    return stored


def sides(level: float, bits: float) -> list[Side]:
    return [Side(torch.tensor([level, level + 1], dtype=torch.float64), bits, False, 10.0)]


def timed(recipe: str, decode: float | None = 9.0) -> dict[str, Any]:
    speed = {"decode": decode, "decode_stderr": 0.5, "engine": "native" if decode else "refused"}
    return {"recipe": recipe, **speed, "stored_bits": 4.0, "disk": 5e6, "model": "asset:some", "threads": 2}


def test_the_table_pairs_allocators_with_uniform_ranks_and_shows_speeds_where_there_are_any() -> None:
    found = {
        "svd_llm(keep=0.8)": sides(3.0, 13.0),
        "svd(keep=0.8)": sides(5.0, 13.0),
        "svd by welore(keep=0.8)": sides(4.5, 12.0),
    }
    fast = {line["recipe"]: line for line in (timed("svd_llm(keep=0.8)"), timed("svd(keep=0.8)", None))}
    told = lowrank.table("20 %", found, fast)
    head, *rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in told.splitlines() if row.startswith("| ")]
    assert head[4:] == ["against `svd_llm(keep=0.8)`, nats", "against uniform, nats", "decodes, tokens/s", "seconds"]
    assert [row[0] for row in rows] == ["`svd_llm(keep=0.8)`", "`svd by welore(keep=0.8)`", "`svd(keep=0.8)`"]
    first, chosen, plain = rows
    assert first[4:7] == ["", "", "9.0 ± 0.5 (native)"]
    assert chosen[4:7] == ["+1.500 (+1.500 to +1.500)", "-0.500 (-0.500 to -0.500)", ""]
    assert chosen[1:3] == ["12.000", "92.3 %"]
    assert plain[5:7] == ["", "refused"]
    assert "uniform" not in lowrank.table("4 bits", {"rtn": sides(3.0, 4.0), "gptq": sides(2.0, 4.0)}, {})


def test_speeds_are_read_where_they_were_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lowrank_speed, "BOOK", Book(str(tmp_path / "lowrank_speed.py"), ("recipe",)))
    assert lowrank.speeds() == {}
    assert lowrank.speed(None) == ""
    lines = [timed(""), timed("svd(keep=0.8)", 4.0), timed("svd(keep=0.8)", 6.0)]
    (tmp_path / "lowrank_speed.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert lowrank.speed(lowrank.speeds()["svd(keep=0.8)"]) == "6.0 ± 0.5 (native)"
    page = lowrank_speed.page([*lowrank.speeds().values()])
    assert "| as it came | 4.000 | 5.0 | 9.0 ± 0.5 (native) |" in page
    assert "| `svd(keep=0.8)` | 4.000 | 5.0 | 6.0 ± 0.5 (native) |" in page


def test_everything_in_the_tables_is_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trimtab.host.model_assets.resolve_model", str)
    monkeypatch.setattr(lowrank, "planned", lambda folder: folder)
    monkeypatch.setattr(lowrank, "coded", lambda bits, groups, stored: [f"{bits} of {stored}", "the same for all"])
    given = argparse.Namespace(quick=False, only=[""], windows=16)
    found = [job.one for job in lowrank_speed.jobs(given)]
    shown = {recipe for removed in lowrank.REMOVED for recipe in lowrank.recipes(removed)}
    coded = {f"{bits} of {oneshot.MODEL}" for bits in lowrank.BUDGETS.values()}
    assert found[0] == "", "the model as it came"
    assert len({*found}) == len(found)
    assert {*found} == shown | coded | {"", "the same for all"}
    given.only = ["d_rank"]
    assert {job.one for job in lowrank_speed.jobs(given)} == {recipe for recipe in shown if "d_rank" in recipe}


def test_a_line_is_timed_on_what_was_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    def decoding(folder: Path, threads: int) -> dict[str, Any]:
        return {"decode": float((folder / "config.json").exists()), "decode_stderr": 0.0, "engine": f"{threads} threads"}

    monkeypatch.setattr(oneshot, "compressed", lambda given: (tiny("llama"), byte_tokenizer(), {}))
    monkeypatch.setattr(lowrank_speed, "decoding", decoding)
    line = lowrank_speed.measured(argparse.Namespace(one="", threads=3))
    assert (line["decode"], line["engine"], line["stored_bits"]) == (1.0, "3 threads", 32.0)
    assert line["disk"] > 0


def test_transforms_are_found_from_their_matrices() -> None:
    rows = [row.split("|") for row in lowrank.transforms((8, 32)).splitlines() if row.startswith(("| 8", "| 32"))]
    assert [row[2].strip() for row in rows] == ["48 of 64", "320 of 1024"]
    assert all(float(cell) < 1e-10 for row in rows for cell in row[3:5])

"""The programme of claims: in processes of their own, side by side or not, the same numbers come out."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from trimtab.core.errors import UsageError
from trimtab.core.progress import Progress
from trimtab.core.recipe import Calibration
from trimtab.core.registry import room
from trimtab.measure import programme
from trimtab.measure.claims import check_claim, code_for, find_claim, run_claim, setting_of, statement
from trimtab.measure.programme import Outcome, Task, chosen, is_missing, run_programme
from trimtab.measure.sides import Setting
from trimtab.testing.folders import tiny_folder

VOLATILE = ("seconds", "date", "machine")


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    draw = random.Random(0)
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join("".join(draw.choices("abcdefgh ", k=100)) for _ in range(20)), encoding="utf-8")
    model = tiny_folder(tmp_path / "model", num_hidden_layers=1)
    return Setting(str(model), str(text), 3, 16, Calibration(str(text), 64, 16), (0, 1))


def task(name: str, setting: Setting) -> Task:
    method, _, claim = name.partition("/")
    return Task(method, find_claim(method, claim), setting)


@pytest.mark.slow
def test_side_by_side_gives_what_one_after_the_other_gives(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process per claim, two at a time, against this process; one side is in both claims; one claim cannot be run."""
    tasks = [task(name, setting) for name in ("wanda/beats-magnitude", "sparsegpt/beats-wanda-at-60")]
    nowhere = task("svd_llm/beats-svd-at-20", Setting(model=str(tmp_path / "nowhere")))
    outcomes: list[Outcome] = []
    seen: list[Progress] = []
    run_programme([nowhere, *tasks], outcomes.append, 2, seen.append)
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "another cache"))
    found = {str(outcome.task): outcome for outcome in outcomes}
    assert found.keys() == {str(nowhere), *map(str, tasks)}
    assert found[str(nowhere)].line is None
    assert "there is no model folder" in found[str(nowhere)].error
    for one in tasks:
        line, alone = found[str(one)].line, run_claim(one.method, one.claim, setting)
        assert line is not None
        assert {k: v for k, v in line.items() if k not in (*VOLATILE, "setting")} == {
            k: v for k, v in alone.items() if k not in (*VOLATILE, "setting")
        }
    told = [now for now in seen if now.phase == "claims"]
    assert [now.done for now in told] == sorted(now.done for now in told)
    assert told[-1].done == told[-1].total == 2 * (1 + 2 * 2) + len(tasks)
    assert told[-1].detail.startswith("(2 of 2) ")


@pytest.mark.slow
def test_results_of_older_code_are_carried_over_only_if_they_come_out_the_same(setting: Setting) -> None:
    """One claim is as it was, one came out otherwise at the seed that is looked at, one only at another seed."""
    names = ("wanda/beats-magnitude", "sparsegpt/beats-wanda-at-60", "flap/bias-helps-at-20")
    ran = [run_claim(one.method, one.claim, setting) | {"code": "older"} for one in (task(name, setting) for name in names)]
    lines = [json.loads(json.dumps(line)) for line in ran]  # as a ledger holds them
    lines[1]["right_ppl"] = [lines[1]["right_ppl"][0] * (1 + 1e-9), lines[1]["right_ppl"][1]]
    lines[2]["left_ppl"] = [lines[2]["left_ppl"][0], 1.0]
    tasks = [replace(task(name, setting), earlier=line) for name, line in zip(names, lines, strict=True)]
    outcomes: list[Outcome] = []
    run_programme(tasks, outcomes.append)
    same, changed, unseen = (next(o for o in outcomes if o.task == one) for one in tasks)
    assert same.line is not None
    assert same.line.pop("checked")["seed"] == setting.seeds[0]
    assert same.line == lines[0] | {"code": code_for(tasks[0].claim)}
    assert changed.line is None
    assert "wanda(sparsity=0.6), seed 0, was" in changed.error
    assert unseen.line is not None
    assert setting_of(lines[0]) == setting


def test_a_claim_that_reads_otherwise_cannot_be_carried_over(setting: Setting) -> None:
    one = task("wanda/beats-magnitude", setting)
    with pytest.raises(UsageError, match="reads otherwise now; run it again"):
        check_claim(one.method, one.claim, {"statement": "a < b"}, setting)


def test_what_nobody_foresaw_in_a_process_is_one_line(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programme, "task_of", lambda method, claim, *_: {"method": method, "claim": claim})
    outcomes: list[Outcome] = []
    run_programme([task("wanda/beats-magnitude", setting)], outcomes.append)
    ((line, error),) = [(outcome.line, outcome.error) for outcome in outcomes]
    assert line is None
    assert error == "unexpected KeyError: 'setting'"


def test_choosing() -> None:
    everything = chosen()
    assert ("gptq", find_claim("gptq", "beats-rtn-at-3-bit")) in everything
    assert chosen(["wanda", "wanda/beats-magnitude"]) == [("wanda", find_claim("wanda", "beats-magnitude"))]
    assert {room(method) for method, _ in chosen(place="prune")} == {"prune"}
    assert chosen(["gptq", "wanda"], "prune") == chosen(["wanda"])
    assert {*chosen(place="quantize")} < {*everything}


@pytest.mark.parametrize(
    ("wanted", "place", "said"),
    [
        (["gptqq"], None, "there is no method 'gptqq'; did you mean 'gptq'"),
        (["rtn"], None, "rtn makes no claims"),
        (["gptq/beats-rtn-at-3-bits"], None, "did you mean 'beats-rtn-at-3-bit'"),
        ([], "quantise", "there is no room 'quantise'; did you mean 'quantize'"),
        (["gptq"], "prune", "none of gptq is in the room 'prune'"),
    ],
)
def test_what_cannot_be_chosen(wanted: list[str], place: str | None, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        chosen(wanted, place)


def test_what_is_missing() -> None:
    one = task("wanda/beats-magnitude", Setting())
    line = {"statement": statement(one.claim), "code": code_for(one.claim), "model": one.setting.model}
    key = ("wanda", "beats-magnitude")
    assert is_missing(one, {})
    assert not is_missing(one, {key: line})
    assert is_missing(one, {key: {**line, "code": "older"}})
    assert is_missing(one, {key: {**line, "statement": "a < b"}})
    assert is_missing(one, {key: {**line, "model": "another"}})

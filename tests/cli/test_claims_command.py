"""`trimtab claims`: hours of work that may be stopped at any time, and a ledger that says what is known."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from trimtab.core.recipe import Calibration
from trimtab.measure import side_store
from trimtab.measure.claims import find_claim, run_claim
from trimtab.measure.programme import Outcome, Task
from trimtab.measure.sides import Setting
from trimtab.testing.folders import tiny_folder

WANDA = "wanda/beats-magnitude"


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "claims"


@pytest.fixture
def setting(model, text):
    return ["--model", model, "--text", text, "--calibration-text", text, "--windows", "2", "--length", "32", "--tokens", "64"]


@pytest.fixture
def here(monkeypatch):
    """Claims run in this process: what processes do is tested elsewhere, and starting them takes seconds."""

    def run(tasks, heard, *rest, **options):
        for task in tasks:
            heard(Outcome(task, run_claim(task.method, task.claim, task.setting)))

    monkeypatch.setattr("trimtab.measure.programme.run_programme", run)


def test_run_list_and_render(trimtab, here, setting, place):
    ledger, quick = place / "ledger.jsonl", place / "quick.jsonl"
    done = trimtab("claims", "run", WANDA, *setting, "--quick", "--json", "--ledger", ledger)
    assert done.exit_code == 0, done.stderr
    (line,) = json.loads(done.stdout)
    assert (line["quick"], line["seeds"]) == (True, [0])
    assert json.loads(quick.read_text()) == line
    assert [path.name for path in place.iterdir()] == ["quick.jsonl"]  # and no page, and no ledger

    done = trimtab("claims", "run", WANDA, *setting, "--missing", "--seeds", "0,3", "--ledger", ledger)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith("wanda beats-magnitude: ")
    (line,) = map(json.loads, ledger.read_text().splitlines())
    assert "quick" not in line
    statement = "`wanda(sparsity=0.5)` < `magnitude(sparsity=0.5)`"
    assert f"| wanda | beats-magnitude | {statement} | **{line['status']}** |" in (place / "LEDGER.md").read_text()

    again = trimtab("claims", "run", WANDA, *setting, "--missing", "--ledger", ledger)
    assert again.stdout == f"nothing is missing in {ledger}\n"
    assert len(ledger.read_text().splitlines()) == 1

    listed = trimtab("claims", "list", "wanda", "sparsegpt", "--ledger", ledger)
    said = json.loads(trimtab("claims", "list", "wanda", "sparsegpt", "--json", "--ledger", ledger).stdout)
    assert [row.split()[:2] for row in listed.stdout.splitlines()[2:3]] == [[WANDA, line["status"].split()[0]]]
    assert (said[0]["status"], said[0]["age"], said[0]["result"]) == (line["status"], "", line)
    assert {(entry["method"], entry["status"], entry["result"]) for entry in said[1:]} == {("sparsegpt", "not run", None)}
    (place / "LEDGER.md").unlink()
    assert trimtab("claims", "render", "--ledger", ledger).exit_code == 0
    assert WANDA.replace("/", " | ") in (place / "LEDGER.md").read_text()


def test_checking_a_result_of_older_code(trimtab, setting, place):
    ledger = place / "ledger.jsonl"
    assert trimtab("claims", "run", WANDA, *setting, "--seeds", "0", "--ledger", ledger).exit_code == 0
    assert trimtab("claims", "check", "--ledger", ledger).stdout == f"no result of older code in {ledger}\n"
    line = json.loads(ledger.read_text())
    ledger.write_text(json.dumps(line | {"code": "older"}) + "\n")
    done = trimtab("claims", "check", "--json", "--ledger", ledger)
    assert done.exit_code == 0, done.stderr
    (again,) = json.loads(done.stdout)
    assert again == json.loads(ledger.read_text().splitlines()[1]) == line | {"checked": again["checked"]}
    assert f"same at {again['checked']['commit']} |" in (place / "LEDGER.md").read_text()


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on(trimtab, text, place, tmp_path, monkeypatch):
    small = tiny_folder(tmp_path / "small", num_hidden_layers=1)
    seeds = ",".join(map(str, range(12)))
    setting = ["--model", small, "--text", text, "--calibration-text", text, "--windows", "2", "--length", "16"]
    words = ["claims", "run", WANDA, *setting, "--tokens", "64", "--seeds", seeds, "--ledger", place / "ledger.jsonl"]
    command = [sys.executable, "-c", "from trimtab.cli.main import run; run()", *map(str, words)]
    # In a group of its own, as from a terminal, so that the signal reaches all of it.
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    sides = tmp_path / "cache" / "measured" / "sides"
    end = time.monotonic() + 120
    while len(kept := [*sides.glob("[!.]*")]) < 3 and child.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    os.killpg(child.pid, signal.SIGINT)
    stdout, stderr = child.communicate(timeout=60)
    assert (child.returncode, stdout) == (130, ""), stderr
    assert stderr.splitlines()[-1] == "trimtab: interrupted; nothing was left half-written"
    assert "Traceback" not in stderr
    assert not place.exists()
    with pytest.raises(ProcessLookupError):  # nobody of the group is left
        os.killpg(child.pid, 0)
    known = len([*sides.glob("[!.]*")])
    assert len(kept) <= known < 2 + 12
    # The second time in this process, so that what is measured can be counted.
    measured = []
    really = side_store.measure_side
    monkeypatch.setattr(side_store, "measure_side", lambda *given: measured.append(given[1]) or really(*given))
    same = Setting(str(small), str(text), 2, 16, Calibration(str(text), 64, 16), tuple(range(12)))
    line = run_claim("wanda", find_claim("wanda", "beats-magnitude"), same)
    assert len(measured) == 2 + 12 - known
    assert len(line["left_ppl"]) == 12


def test_what_cannot_be_run_is_said(trimtab, setting, place):
    ledger = place / "ledger.jsonl"
    done = trimtab("claims", "run", WANDA, *setting, "--model", place / "nowhere", "--ledger", ledger)
    first, last = done.stderr.splitlines()[-2:]
    assert done.exit_code == 1
    assert first.startswith(f"trimtab: error: {WANDA}: there is no model folder")
    assert last == f"trimtab: error: 1 of 1 claims could not be run, see above; all others are in {ledger}"
    assert done.stdout == ""
    assert not ledger.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "--room", "quantise"], "there is no room 'quantise'; did you mean 'quantize'?"),
        (["list", "--room", "quantise"], "there is no room 'quantise'; did you mean 'quantize'?"),
        (["run", "rtn"], "rtn makes no claims"),
        (["run", "gptq", "--seeds", "a"], "--seeds must be whole numbers"),
        (["run", "gptq", "--jobs", "0"], "invalid value for '--jobs'"),
    ],
)
def test_bad_requests_are_one_line(trimtab, place, words, said):
    done = trimtab("claims", *words, "--ledger", place / "ledger.jsonl")
    assert done.exit_code == 2
    assert said in done.stderr.splitlines()[-1]
    assert not place.exists()


def test_a_damaged_ledger_is_noticed_before_the_work(trimtab, setting, place):
    place.mkdir()
    ledger = place / "ledger.jsonl"
    ledger.write_text('{"method": "wanda", "cla')
    for words in (["run", WANDA, *setting], ["list"], ["render"]):
        done = trimtab("claims", *words, "--ledger", ledger)
        assert done.exit_code == 2
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"trimtab: error: {ledger}:1 is damaged")
        assert "remove this line and run its claim again" in line
    assert ledger.read_text() == '{"method": "wanda", "cla'


def test_a_room_and_its_settings(monkeypatch, trimtab, place):
    heard: list[Task] = []
    monkeypatch.setattr("trimtab.measure.programme.run_programme", lambda tasks, *rest, **options: heard.extend(tasks))
    trimtab("claims", "run", "--room", "prune", "--windows", "3", "--ledger", place / "ledger.jsonl", "-q")
    assert {task.method for task in heard} >= {"wanda", "sparsegpt"}
    assert not {task.method for task in heard} & {"gptq", "flap"}
    assert {task.setting for task in heard if task.claim.model is None} == {Setting(windows=3)}
    heard.clear()
    trimtab("claims", "run", WANDA, "--quick", "--windows", "3", "--ledger", place / "ledger.jsonl", "-q")
    (task,) = heard
    assert (task.setting.windows, task.setting.length, task.setting.seeds) == (3, 256, (0,))


def test_without_a_command_there_is_help(trimtab):
    done = trimtab("claims")
    assert done.exit_code == 0
    assert "render" in done.stdout

"""`trimtab bench`: speeds beside the speed of reading, and none at all for a model that answers wrongly."""

import json
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from trimtab.cli import bench as command
from trimtab.core.errors import TrimtabError, UsageError
from trimtab.measure import bench as room
from trimtab.measure.bench import Gate, gate, longer, words
from trimtab.runtime import Unsupported
from trimtab.runtime.native import native
from trimtab.testing.folders import tiny_folder
from trimtab.testing.tiny import tiny


def compiled() -> bool:
    try:
        native()
    except Unsupported:
        return False
    return True


with_native = pytest.mark.skipif(not compiled(), reason="no compiled kernels")
SHORT = ("--repeats", "2", "--prefill", "24", "--new-tokens", "4", "--threads", "1", "-q")


class Recorded:
    """A session that answers with given logits [n, vocabulary]."""

    def __init__(self, logits: np.ndarray):
        self.logits, self.at = logits, 0

    def session(self) -> "Recorded":
        return self

    def prefill(self, ids, every):
        self.at += len(ids)
        return self.logits[self.at - len(ids) : self.at]

    def step(self, id):
        return self.prefill([id], True)[0]


@pytest.fixture(scope="module")
def said():
    model, ids = tiny("llama"), [5, 9, 4, 33, 60, 8, 7, 90, 12, 3, 40]
    with torch.no_grad():
        return model, ids, model(input_ids=torch.tensor([ids])).logits[0].numpy()


def test_the_gate_is_open_for_what_torch_says(said) -> None:
    model, ids, logits = said
    found = gate(Recorded(logits), model, ids)
    assert (found.red, found.same_top, found.positions) == ("", 1.0, 11)
    assert found.perplexity[0] == pytest.approx(found.perplexity[1])


def test_the_gate_is_closed_for_anything_else(said) -> None:
    model, ids, logits = said
    swapped = logits.copy()
    swapped[7] = -swapped[7]
    assert "perplexity" in gate(Recorded(swapped), model, ids).red
    last = logits.copy()
    last[-1] = -last[-1]  # which no loss sees
    assert "same top token as torch at 90.9%" in gate(Recorded(last), model, ids).red
    broken = logits.copy()
    broken[3, 3] = np.nan
    assert "perplexity nan" in gate(Recorded(broken), model, ids).red
    with pytest.raises(TrimtabError, match="two tokens"):
        gate(Recorded(logits), model, ids[:1])


def test_numbers_of_threads(monkeypatch) -> None:
    monkeypatch.setattr(command.os, "cpu_count", lambda: 6)
    assert command._counts("") == [1, 2, 4, 6]
    assert command._counts("3,1") == [3, 1]
    for wrong, why in (("0", "1 to 6"), ("7", "1 to 6"), ("two", "whole numbers"), ("1,", "whole numbers")):
        with pytest.raises(UsageError, match=why):
            command._counts(wrong)
    monkeypatch.setattr(command.os, "cpu_count", lambda: 1)
    assert command._counts("") == [1]


def test_what_does_not_fit_into_the_context_is_cut() -> None:
    asked = {"prefill": 512, "new_tokens": 64, "repeats": 5}
    assert command._fitting(asked, 2048) == asked
    assert command._fitting(asked, 128) == {"prefill": 128, "new_tokens": 64, "repeats": 5}
    assert command._fitting(asked, 40) == {"prefill": 40, "new_tokens": 23, "repeats": 5}
    assert longer([1, 2, 3], 7) == [1, 2, 3, 1, 2, 3, 1]


def test_without_a_tokenizer_there_are_ids_all_the_same(model, tmp_path) -> None:
    assert len(words(model, 20, 97)) == 20
    assert words(tmp_path, 20, 97) == words(tmp_path, 20, 97)
    assert all(0 <= id < 97 for id in words(tmp_path, 20, 97))


@with_native
def test_a_covered_model(trimtab, model, monkeypatch) -> None:
    monkeypatch.setattr(room, "SAME_TOP", 0.9)  # random weights have near ties, and 128 positions are few
    told, found = trimtab("bench", model, *SHORT), json.loads(trimtab("bench", model, *SHORT, "--json").stdout)
    assert told.exit_code == 0, told.stderr
    lines = told.stdout.splitlines()
    assert "of weights per token" in lines[0]
    assert lines[1].startswith("gate: same top token at ")
    assert lines[2].split()[:2] == ["threads", "prefill"]
    assert found["engine"] == "native"
    assert found["gate"]["red"] == ""
    (timed,) = found["threads"]
    assert timed["decode"]["value"] > 0
    assert timed["decode"]["n"] == 2 * 4
    assert timed["prefill"]["setting"]["prompt"] == 24
    assert timed["share"] > 0
    assert found["bytes_per_token"] > 0
    assert next(iter(timed["stages"])) == "embedding"
    assert all(seconds >= 0 for seconds in timed["stages"].values())
    assert timed["stages"]["gate and up"] > 0 < timed["stages"]["head"]
    said = [line.split()[0] for line in lines[5:] if line]
    assert said[-3:] == ["choice", "waiting", "together"]


@with_native
def test_nothing_is_shown_of_wrong_answers(trimtab, model, monkeypatch) -> None:
    monkeypatch.setattr(room, "gate", lambda *_: Gate(9, 0.5, (2.0, 1.0), "the native session is wrong"))
    monkeypatch.setattr(room, "time_native", lambda *_, **__: pytest.fail("was timed"))
    done = trimtab("bench", model, *SHORT)
    assert (done.exit_code, done.stdout) == (1, "")
    assert "the native session is wrong" in done.stderr


def test_a_model_that_is_not_covered_is_timed_through_transformers(trimtab, tmp_path) -> None:
    folder = tiny_folder(tmp_path / "mixtral", "mixtral", num_hidden_layers=1)
    told = trimtab("bench", folder, *SHORT)
    found = json.loads(trimtab("bench", folder, *SHORT, "--json").stdout)
    assert told.exit_code == 0, told.stderr
    assert "the native runtime does not cover it" in told.stdout
    assert "transformers' generate is timed instead" in told.stderr
    assert (found["engine"], found["threads"][0]["read"]) == ("torch", None)
    assert found["why"] in told.stdout
    assert found["threads"][0]["decode"]["value"] > 0


def test_the_share_is_of_reading() -> None:
    timed = room.Timed(2, *(SimpleNamespace(value=v, stderr=0.0, unit="") for v in (100.0, 50.0, 4e9)), share=0.5)
    assert command._row(timed, 40_000_000) == ["2", "100", "50", "2.00", "4.00", "50%"]
    assert command._row(room.Timed(1, timed.prefill, timed.decode), None)[3:] == ["-", "-", "-"]


def test_stages_are_told_with_their_shares() -> None:
    down, head, together = command._stage_rows([{"down": 0.003, "head": 0.001}, {"down": 0.001, "head": 0.001}])
    assert down == ["down", "3.000 (75%)", "1.000 (50%)"]
    assert head == ["head", "1.000 (25%)", "1.000 (50%)"]
    assert together == ["together", "4.000", "2.000"]


def test_a_gate_says_its_numbers() -> None:
    assert str(Gate(200, 0.995, (10.0, 9.999), "")) == ("same top token at 99.5% of 200 positions, perplexity 10 against 9.999")
    assert asdict(Gate(1, 1.0, (1.0, 1.0), ""))["positions"] == 1

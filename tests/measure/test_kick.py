"""Closed and open book: what is lost relative to the base, item by item."""

import math

import pytest
import torch

from trimtab.core.errors import DataError
from trimtab.core.report import Measurement
from trimtab.data import evidence
from trimtab.data.evidence import Asked
from trimtab.data.pack import Request
from trimtab.measure.items import ABSENT, Items
from trimtab.measure.kick import CLOSED, OPEN, Kick, bare, drop, f1, forgotten, kick, tolerance, written_answers
from trimtab.testing.folders import byte_tokenizer
from trimtab.testing.tiny import tiny

TOKENIZER = byte_tokenizer()


def spoken(arm: str, bits: list[float], ids: tuple[str, ...] | None = None) -> Items:
    """Gold answers of two bytes each that take so many bits."""
    count = len(bits)
    return Items(
        arm,
        ids or tuple(map(str, range(count))),
        torch.zeros(count, dtype=torch.int64),
        -torch.tensor(bits, dtype=torch.float64)[:, None] * math.log(2),
        torch.full((count, 1), 2),
        ("squad",) * count,
        torch.zeros(count, 1, dtype=torch.bool),
        0,
        {},
    )


def chosen(right: list[bool]) -> Items:
    """Four choices; the last item has two."""
    scores = torch.tensor([[-1.0, -2.0, -3.0, -4.0] if yes else [-2.0, -1.0, -3.0, -4.0] for yes in right], dtype=torch.float64)
    scores[-1, 2:] = ABSENT
    count = len(right)
    return Items(
        "kick:closed-choice",
        tuple(map(str, range(count))),
        torch.zeros(count, dtype=torch.int64),
        scores,
        torch.ones(count, 4, dtype=torch.int64),
        ("sciq",) * count,
        torch.zeros(count, 4, dtype=torch.bool),
        0,
        {},
    )


def test_the_drop_of_gold_answers_is_the_rise_of_their_bits() -> None:
    found = drop(spoken(CLOSED, [2, 4, 6]), spoken(CLOSED, [3, 4, 8]))
    assert (found.name, found.value, found.n) == ("kick:closed drop", pytest.approx(3 / 12), 3)
    residual = torch.tensor([1 - 0.5, 0 - 1, 2 - 1.5], dtype=torch.float64) / 4
    assert found.stderr == pytest.approx(float(residual.std() / math.sqrt(3)))
    assert drop(spoken(CLOSED, [2, 4]), spoken(CLOSED, [2, 4])).value == 0


def test_the_drop_of_choices_is_relative_to_what_is_above_chance() -> None:
    base, other = chosen([True, True, True, False, True]), chosen([True, False, True, False, True])
    above = 4 - (4 * 0.25 + 0.5)
    assert drop(base, other).value == pytest.approx(1 / above)
    with pytest.raises(DataError, match="no better than chance"):
        drop(chosen([False, False, False]), chosen([True, True, True]))


def test_other_items_are_not_compared() -> None:
    with pytest.raises(DataError, match="answers to different items"):
        drop(spoken(CLOSED, [1, 2]), spoken(CLOSED, [1, 2], ids=("a", "b")))
    with pytest.raises(DataError, match="answers to different items"):
        drop(spoken(CLOSED, [1, 2]), spoken(OPEN, [1, 2]))


def test_forgetting_is_the_difference_of_the_drops_on_the_same_items() -> None:
    base = Kick({CLOSED: spoken(CLOSED, [4, 4, 4, 4]), OPEN: spoken(OPEN, [2, 2, 2, 2])}, ())
    other = Kick({CLOSED: spoken(CLOSED, [5, 6, 5, 6]), OPEN: spoken(OPEN, [2, 2.5, 2, 2.5])}, ())
    found = forgotten(base, other)
    assert found.value == pytest.approx(6 / 16 - 1 / 8)
    closed = torch.tensor([1, 2, 1, 2], dtype=torch.float64) / 4
    opened = torch.tensor([0, 0.5, 0, 0.5], dtype=torch.float64) / 2
    assert found.stderr == pytest.approx(float((closed - opened).std() / 2))  # the arms go up and down together


def test_tolerance_is_the_last_strength_before_the_first_that_is_too_much() -> None:
    drops = {0.5: 0.2, 0.1: 0.01, 0.3: 0.04, 0.7: 0.03}
    measured = {strength: Measurement("", value, 0.0, 1, "") for strength, value in drops.items()}
    assert tolerance(measured) == 0.3  # 0.7 is luck: 0.5 already loses too much
    assert tolerance(measured, most=0.5) == 0.7
    assert tolerance(measured, most=0.001) is None


def test_words_are_compared_as_squad_does() -> None:
    assert bare(" The  Cat's, (big) hat. ") == "cats big hat"
    assert bare("another theatre") == "another theatre"  # articles are whole words
    assert f1("the red hat", "a big red hat") == pytest.approx(2 * 2 / (2 + 3))
    assert (f1("dog", "cat"), f1("", "cat"), f1("Cat!", "the cat")) == (0.0, 0.0, 1.0)


def test_what_is_written_counts_by_its_first_line_and_best_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"q1": " The red hat\nQuestion: more", "q2": " nothing"}
    monkeypatch.setattr("trimtab.measure.kick.generate", lambda model, tokenizer, prompt, tokens: said[prompt])
    asked = [Request("1", ("q1",), (" x",), 0, "", ("blue", "red hat")), Request("2", ("q2",), (" x",), 0, "", ("all", "most"))]
    exact, shared = written_answers(None, None, OPEN, asked)
    assert (exact.name, exact.value, exact.n) == ("kick:open exact match, written", 0.5, 2)
    assert (shared.name, shared.value) == ("kick:open F1, written", 0.5)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [Asked(f"sciq/{n}", "sciq", f"It is {n}.", f"Is it {n}?", (str(n),), (" no", f" {n}"), 1) for n in range(6)]
    monkeypatch.setattr(evidence, "_squad", lambda: iter([Asked("squad/0", "squad", "p", "q", ("a",))]))
    monkeypatch.setattr(evidence, "_sciq", lambda: iter(asked))


def test_all_arms_of_a_model(toy: None) -> None:
    size = {"vocab_size": len(TOKENIZER), "num_hidden_layers": 1, "max_position_embeddings": 512}
    models = (tiny("llama", seed, **size) for seed in (0, 1))
    base, other = (kick(model, TOKENIZER, limit=4, written=2) for model in models)
    assert list(base.items) == ["kick:closed", "kick:open", "kick:closed-choice", "kick:open-choice"]
    assert base.items[CLOSED].ids == base.items[OPEN].ids == other.items[OPEN].ids
    assert len(base.items[CLOSED]) == 4
    names = [m.name for m in base.measurements]
    assert {"kick:open bits per byte", "kick:closed-choice accuracy", "kick:open F1, written"} <= set(names)
    assert math.isfinite(drop(base.items[CLOSED], other.items[CLOSED]).value)
    assert math.isfinite(forgotten(base, other).stderr)

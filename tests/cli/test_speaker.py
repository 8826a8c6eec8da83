"""A model asked line by line: JSON in, JSON out, an interrupt stops the answer only."""

import io
import json
import os
import signal
import subprocess
import sys

import pytest

from trimtab.cli.speaker import Speaker
from trimtab.testing.folders import byte_tokenizer


class Reciter:
    """Says the alphabet, byte by byte; at `trouble` something happens."""

    engine, penalty, about = "reciter", 1.0, "recites"

    def __init__(self, trouble: Exception | type[BaseException] | None = None):
        self.trouble, self.tokenizer = trouble, byte_tokenizer()
        self.decode = self.tokenizer.decode

    def encode(self, text: str, special: bool) -> list[int]:
        return self.tokenizer(text)["input_ids"]

    def conversation(self, messages) -> str:
        return f"<{messages[0]['content']}>"

    def say(self, ids, new_tokens, sampling, hear) -> None:
        self.asked = ids, sampling
        for id in self.tokenizer("aé🙂")["input_ids"][:new_tokens]:
            hear(id)
        if self.trouble:
            raise self.trouble


def answered(voice: Reciter, **question) -> list[dict]:
    page = io.StringIO()
    Speaker(page).answer(voice, {"prompt": "x", **question})
    return [json.loads(line) for line in page.getvalue().splitlines()]


def test_words_come_one_by_one_and_characters_are_whole():
    *told, end = answered(Reciter())
    assert [line["text"] for line in told] == ["a", "", "é", "", "", "", "🙂"]
    assert [line["tokens"] for line in told] == [1, 2, 3, 4, 5, 6, 7]
    assert (end["what"], end["tokens"], end["stopped"]) == ("end", 7, False)


def test_what_was_held_back_comes_at_the_end():
    *_, end = answered(Reciter(), new_tokens=2)
    assert end["text"] == "\N{REPLACEMENT CHARACTER}"


def test_the_question_decides():
    voice = Reciter()
    answered(voice, chat=True, seed=3, temperature=0.5)
    ids, sampling = voice.asked
    assert voice.decode(ids) == "<x>"
    assert (sampling.seed, sampling.temperature) == (3, 0.5)


def test_an_interrupt_ends_the_answer_with_what_was_said():
    *_, end = answered(Reciter(KeyboardInterrupt), new_tokens=1)
    assert (end["what"], end["tokens"], end["stopped"]) == ("end", 1, True)


@pytest.mark.parametrize(
    ("question", "said"),
    [({"prompt": ""}, "the prompt is empty; give at least one word"), ({}, "unexpected ValueError: no way")],
)
def test_what_is_wrong_is_one_line(question, said):
    last = answered(Reciter(ValueError("no\tway")), **question)[-1]
    assert last == {"what": "error", "text": said}


def test_interrupts_are_heeded_only_while_something_is_said():
    speaker = Speaker(io.StringIO())
    speaker.interrupted(signal.SIGINT, None)
    speaker.speaking = True
    with pytest.raises(KeyboardInterrupt):
        speaker.interrupted(signal.SIGINT, None)
    assert speaker.speaking is False


def test_a_process_answers_until_nobody_asks(model):
    command = [sys.executable, "-P", "-m", "trimtab.cli.speaker", str(model), "1"]
    asked = "".join(json.dumps({"prompt": "hello", "new_tokens": count}) + "\n" for count in (3, 2))
    done = subprocess.run(command, input=asked, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["what"] for line in lines] == ["ready", *["text"] * 3, "end", *["text"] * 2, "end"]
    assert lines[0]["engine"] in ("native", "torch")


def test_a_model_that_cannot_be_opened_is_one_line(tmp_path):
    command = [sys.executable, "-P", "-m", "trimtab.cli.speaker", str(tmp_path / "nothing here"), "1"]
    done = subprocess.run(command, input="", capture_output=True, text=True)
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["what"] == "error"
    assert "Traceback" not in done.stderr

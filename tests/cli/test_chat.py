"""`trimtab chat`: turns, what is kept between them, and the keys that stop an answer or leave."""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from trimtab.cli.chat import Talk
from trimtab.cli.voice import Native, shared
from trimtab.core.errors import UsageError
from trimtab.runtime import Sampling, Unsupported
from trimtab.runtime.native import native
from trimtab.testing.folders import byte_tokenizer, tiny_folder

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def compiled() -> bool:
    try:
        native()
    except Unsupported:
        return False
    return True


with_native = pytest.mark.skipif(not compiled(), reason="no compiled kernels")
ENGINES = [pytest.param("native", marks=with_native), "torch"]


@pytest.fixture(scope="module")
def talkative(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_folder(tmp_path_factory.mktemp("models") / "talkative", num_hidden_layers=2, max_position_embeddings=512)
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return folder


class Echo:
    """A voice that answers with the last line, and may be stopped after some tokens."""

    engine, penalty, about = "echo", 1.0, "echo"

    def __init__(self) -> None:
        self.tokenizer, self.asked, self.stop_after = byte_tokenizer(), list[str](), 1000
        self.seeds = list[int]()

    def encode(self, text: str, special: bool) -> list[int]:
        self.asked.append(text)
        return list(self.tokenizer(text)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids))

    def conversation(self, messages) -> str:
        if messages[-1]["content"] == "refuse":
            raise UsageError("I do not take this")
        return "|".join(f"{m['role']}:{m['content']}" for m in messages)

    def say(self, ids, new_tokens, sampling, hear) -> None:
        self.seeds.append(sampling.seed)
        for number, id in enumerate(ids[self.decode(ids).rindex(":") + 1 :]):
            if number == self.stop_after:
                raise KeyboardInterrupt
            hear(id)


def talk(system: str | None = None) -> Talk:
    return Talk(Echo(), Sampling(), 50, system)


def test_the_history_grows_and_can_be_forgotten(capsys) -> None:
    one = talk("be kind")
    assert all(one.obey(line) for line in ("hi\n", "\n", "you\n", "/reset\n", "again\n"))
    assert one.voice.asked == [
        "system:be kind|user:hi\n",
        "system:be kind|user:hi\n|assistant:hi\n|user:you\n",
        "system:be kind|user:again\n",
    ]
    assert one.obey("/quit\n") is False
    assert capsys.readouterr().out == "hi\n\nyou\n\nagain\n\n"


def test_a_stopped_answer_is_kept_as_far_as_it_came(capsys) -> None:
    one = talk()
    one.voice.stop_after = 3
    assert one.obey("a long answer") is True
    said = capsys.readouterr()
    assert said.out == "a l\n"
    assert said.err == "trimtab: stopped\n"
    assert one.messages[-1] == {"role": "assistant", "content": "a l"}


def test_a_turn_that_fails_was_never_said(capsys) -> None:
    one = talk()
    assert one.obey("refuse") is True
    assert one.messages == []
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "trimtab: error: I do not take this (/reset forgets the conversation)\n"


def test_every_turn_draws_with_a_seed_of_its_own(capsys) -> None:
    one = Talk(Echo(), Sampling(temperature=1.0, seed=5), 50, None)
    for line in ("hi", "refuse", "hi", "/reset", "hi"):
        one.obey(line)
    assert one.voice.seeds == [5, 6, 7]


@pytest.mark.parametrize("engine", ENGINES)
def test_equal_turns_are_answered_differently_and_the_same_talk_alike(talkative, engine) -> None:
    from typer.testing import CliRunner

    from trimtab.cli.main import app

    def talked(seed: int) -> str:
        words = ["chat", str(talkative), "--engine", engine, "--new-tokens", "12", "--seed", str(seed), "-q"]
        return CliRunner().invoke(app, words, input="hi\n/reset\nhi\n").stdout

    said = talked(3)
    half = len(said) // 2
    assert said[:half] != said[half:]
    assert talked(3) == said != talked(30)


def test_a_command_that_there_is_not_is_explained_and_not_sent(capsys) -> None:
    one = talk()
    assert one.obey("/rest") is True
    assert one.voice.asked == []
    assert "there is no /rest: /reset forgets" in capsys.readouterr().err
    assert one.obey("/etc is a folder") is True  # a line that only begins like one
    assert len(one.messages) == 2


class Counting:
    """A session that notes what it is given to read, and continues with 7, 8, 9."""

    def __init__(self) -> None:
        self.length, self.read = 0, list[list[int]]()

    def truncate(self, length: int) -> None:
        assert length <= self.length
        self.length = length

    def generate(self, ids, new_tokens, sampling, stop):
        self.read.append(list(ids))
        self.length += len(ids)
        for id in (7, 8, 9)[:new_tokens]:
            self.length += 1
            yield id


@pytest.fixture
def voice() -> Native:
    made = object.__new__(Native)
    made.session, made.text, made.held = Counting(), SimpleNamespace(stops=()), []
    return made


def test_only_what_is_new_is_read(voice) -> None:
    heard: list[int] = []
    voice.say([1, 2, 3], 3, Sampling(), heard.append)
    voice.say([1, 2, 3, 7, 8, 9, 4, 5], 3, Sampling(), heard.append)
    voice.say([1, 2, 6], 3, Sampling(), heard.append)
    voice.say([1, 2, 6], 3, Sampling(), heard.append)  # the same again: one is read, for its logits
    assert voice.session.read == [[1, 2, 3], [4, 5], [6], [6]]
    assert heard == [7, 8, 9] * 4
    assert voice.session.length == 6


def test_after_a_stop_only_what_the_session_has_counts(voice) -> None:
    def stop(id: int) -> None:
        if id == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        voice.say([1, 2, 3], 3, Sampling(), stop)
    voice.say([1, 2, 3, 7, 8, 4], 1, Sampling(), lambda id: None)
    assert voice.session.read[1] == [4]
    voice.session.generate = lambda *_: (id for id in ())  # nothing could be read
    voice.say([5, 5, 5], 1, Sampling(), lambda id: None)
    assert voice.held == []


def test_what_two_sequences_share() -> None:
    assert [shared(*pair) for pair in (([], [1]), ([1, 2], [1, 2, 3]), ([1, 2, 3], [1, 9]), ([4], [5]))] == [0, 2, 1, 0]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_conversation_through_a_pipe(talkative, engine) -> None:
    from typer.testing import CliRunner

    from trimtab.cli.main import app

    words = ["chat", str(talkative), "--engine", engine, "--new-tokens", "5"]
    done = CliRunner().invoke(app, words, input="hello\nand you\n/reset\nhello\n")
    assert done.exit_code == 0, done.stderr
    single = CliRunner().invoke(app, [*words, "-q"], input="hello\n/quit\nmore\n")
    assert single.stderr == ""
    assert single.stdout
    assert done.stdout.startswith(single.stdout)
    assert done.stdout.endswith(single.stdout)
    assert len(done.stdout) > 2 * len(single.stdout)


@with_native
def test_both_engines_hold_the_same_conversation(talkative, monkeypatch) -> None:
    """The native one reads only what is new; that must not change what it says."""
    from typer.testing import CliRunner

    from trimtab.cli.main import app

    said = [
        CliRunner()
        .invoke(app, ["chat", str(talkative), "--engine", e, "--new-tokens", "6", "-q"], input="one\ntwo\nthree\n")
        .stdout
        for e in ("native", "torch")
    ]
    assert said[0] == said[1]


def test_a_model_that_knows_no_conversation(trimtab, model) -> None:
    done = trimtab("chat", model, "-q")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "cannot chat: this tokenizer has no chat template" in done.stderr.splitlines()[-1]


def test_a_conversation_that_no_longer_fits_is_said_in_one_line(talkative) -> None:
    if not compiled():
        pytest.skip("no compiled kernels")
    from typer.testing import CliRunner

    from trimtab.cli.main import app

    done = CliRunner().invoke(app, ["chat", str(talkative), "--new-tokens", "4", "-q"], input="x" * 600 + "\nhi\n")
    assert done.exit_code == 0
    (line,) = done.stderr.splitlines()
    assert line.startswith("trimtab: error: ")
    assert done.stdout.strip()  # the next turn is answered


@with_native
def test_keys_on_a_real_terminal(talkative) -> None:
    """Ctrl-C at the prompt asks again, Ctrl-D leaves."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    words = [sys.executable, "-c", "from trimtab.cli.main import run; run()", "chat", str(talkative), "--new-tokens", "40"]
    environment = {"PATH": os.environ["PATH"], "TERM": "xterm", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    child = subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True)
    os.close(theirs)
    _until(ours, "> ")
    _interrupt(child, ours)
    os.write(ours, b"/quit please do not\n")  # a line that only begins like a command
    said = _until(ours, "> ")
    os.write(ours, b"\x04")
    said += _until(ours, None)
    assert child.wait(timeout=60) == 0, said
    os.close(ours)
    assert "Traceback" not in said


def _interrupt(child: subprocess.Popen, terminal: int) -> None:
    """Ctrl-C until there is another prompt: the first may come between a prompt and the reading of what is typed."""
    for _ in range(20):
        child.send_signal(signal.SIGINT)
        if "> " in _until(terminal, "> ", 5):
            return
    raise AssertionError("Ctrl-C at the prompt brings no other one")


def _until(terminal: int, word: str | None, seconds: float = 100) -> str:
    """What a terminal shows until `word` is in it, until its program has gone, or for so long."""
    said, end = "", time.monotonic() + seconds
    with suppress(OSError):  # a terminal whose program has gone cannot be read
        while (word is None or word not in said) and select.select([terminal], [], [], max(0, end - time.monotonic()))[0]:
            piece = os.read(terminal, 4096)
            if not piece:
                break
            said += piece.decode(errors="replace")
    return said

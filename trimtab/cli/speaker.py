"""A model that is asked line by line, by a program: `python -m trimtab.cli.speaker MODEL THREADS`, JSON on stdin and stdout.

Whoever shows several models at once, as `trimtab ui` does, gives each a process of its own: what one of them needs or does ends
with it. A line asks `{"prompt", "new_tokens", "chat", "seed", "temperature"}`, of which only the prompt is needed. It is answered
by lines `{"what": "text", "text", "tokens", "seconds"}` and a last one, "end" or "error". An interrupt stops the answer, not
the process; the end of stdin ends it.
"""

import io
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from time import monotonic
from typing import IO, Any

from trimtab.cli.generate import asked, sampling_of
from trimtab.cli.manners import hushed, one_line
from trimtab.cli.voice import Voice, open_voice
from trimtab.core.errors import TrimtabError
from trimtab.runtime.text import Stream

NEW_TOKENS = 64


class Speaker:
    """Answers on `page`. `speaking`: whether an interrupt stops something."""

    def __init__(self, page: IO[str]):
        self.page, self.speaking = page, False

    def tell(self, what: str, **more: Any) -> None:
        print(json.dumps({"what": what, **more}), file=self.page, flush=True)

    def open(self, model: str, threads: int) -> Voice | None:
        """Says what answers and why, or what is wrong."""
        notes = io.StringIO()
        try:
            with redirect_stderr(notes):
                voice = open_voice(model, "auto", threads)
        except Exception as error:
            self.tell("error", text=_explained(error))
            return None
        note = one_line(notes.getvalue()).removeprefix("trimtab: note: ")
        self.tell("ready", about=voice.about, engine=voice.engine, note=note)
        return voice

    def answer(self, voice: Voice, question: dict[str, Any]) -> None:
        begun, said, stream = monotonic(), list[int](), Stream(voice.decode)

        def hear(id: int) -> None:
            said.append(id)
            self.tell("text", text=stream.push(id), tokens=len(said), seconds=round(monotonic() - begun, 4))

        stopped = False
        try:
            with self._heeding():
                sampling = sampling_of(question.get("seed"), question.get("temperature"), None, None, None, voice)
                ids = asked(voice, question["prompt"], bool(question.get("chat")))
                voice.say(ids, question.get("new_tokens", NEW_TOKENS), sampling, hear)
        except KeyboardInterrupt:
            stopped = True
        except Exception as error:
            self.tell("error", text=_explained(error))
            return
        self.tell("end", text=stream.end(), tokens=len(said), seconds=round(monotonic() - begun, 4), stopped=stopped)

    @contextmanager
    def _heeding(self) -> Iterator[None]:
        self.speaking = True
        try:
            yield
        finally:
            self.speaking = False

    def interrupted(self, number: int, frame: object) -> None:
        if self.speaking:
            self.speaking = False
            raise KeyboardInterrupt


def _explained(error: Exception) -> str:
    known = isinstance(error, TrimtabError)
    return one_line(str(error) if known else f"unexpected {type(error).__name__}: {error}")


def main(model: str, threads: int) -> None:
    page = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no answer
    speaker = Speaker(page)
    signal.signal(signal.SIGINT, speaker.interrupted)
    with hushed(verbose=False):
        voice = speaker.open(model, threads)
        if voice is not None:
            for line in sys.stdin:
                speaker.answer(voice, json.loads(line))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

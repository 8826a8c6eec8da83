"""Models that speak side by side: each in a process of its own (`cli/speaker.py`), all at the same time, word by word.

Every one gets the same share of the processor, so that it is a fair race. Those that spoke last stay open for the next question;
after a while of silence they are ended, and their memory is free.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SPEAKER = (sys.executable, "-P", "-m", "trimtab.cli.speaker")
SILENCE = 600.0  # seconds
GRACE = 5.0  # seconds between an interrupt and force
LONGEST = 1 << 20  # bytes of a line
ENDS = ("end", "error")
Event = dict[str, Any]
STOPPED: Event = {"what": "end", "text": "", "tokens": 0, "seconds": 0.0, "stopped": True}


class Speaker:
    """One model. `hello`: what it said when it had opened."""

    def __init__(self, model: str, threads: int, place: Path, command: Sequence[str]):
        self.model, self.threads, self.place, self.command = model, threads, place, command
        self.process: asyncio.subprocess.Process | None = None
        self.hello: Event = {}
        self.stopped = False

    def is_open(self) -> bool:
        return self.process is not None and self.process.returncode is None

    async def say(self, question: dict[str, Any]) -> AsyncIterator[Event]:
        """Events of the answer: "opening", "ready", "text" and so on, at last "end" or "error"."""
        if not self.is_open():
            yield {"what": "opening"}
            self.hello = await self._open()
        yield {**self.hello, "threads": self.threads}
        if self.hello["what"] != "ready":
            await self.close()
            return
        if self.stopped:
            yield STOPPED
            return
        await self._ask(question)
        last = ""
        while last not in ENDS:
            event = await self._heard()
            last = event["what"]
            yield event

    def stop(self) -> None:
        """Ends the answer at hand; a process that is still opening is ended whole."""
        self.stopped = True
        if self.is_open():
            self._signal(signal.SIGINT if self.hello else signal.SIGKILL)

    async def close(self) -> None:
        """Its memory is free afterwards."""
        if self.is_open():
            assert self.process
            assert self.process.stdin
            self.process.stdin.close()
            self.stop()
            try:
                await asyncio.wait_for(self.process.wait(), GRACE)
            except TimeoutError:
                self._signal(signal.SIGKILL)
                await self.process.wait()
        self.hello = {}

    async def _open(self) -> Event:
        self.hello = {}
        self.process = await asyncio.create_subprocess_exec(
            *(*self.command, self.model, str(self.threads)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            cwd=self.place,
            env={**os.environ, "OMP_NUM_THREADS": str(self.threads)},
            start_new_session=True,
            limit=LONGEST,
        )
        return await self._heard()

    async def _ask(self, question: dict[str, Any]) -> None:
        assert self.process
        assert self.process.stdin
        self.process.stdin.write(json.dumps(question).encode() + b"\n")
        with suppress(ConnectionError):  # it has gone; what it left behind is heard next
            await self.process.stdin.drain()

    async def _heard(self) -> Event:
        assert self.process
        assert self.process.stdout
        line = await self.process.stdout.readline()
        if line:
            heard: Event = json.loads(line)
            return heard
        code = await self.process.wait()
        self.hello = {}
        return STOPPED if self.stopped else _gone(code)

    def _signal(self, number: signal.Signals) -> None:
        assert self.process
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


def _gone(code: int) -> Event:
    why = signal.Signals(-code).name if code < 0 else f"code {code}"
    return {"what": "error", "text": f"the model's process ended with {why}"}


@dataclass
class Conversation:
    """One question to several models. Stopping it is heeded whether it has begun or not."""

    models: Sequence[str]
    question: dict[str, Any]
    events: "asyncio.Queue[Event]" = field(default_factory=asyncio.Queue)
    speakers: Sequence[Speaker] = ()
    stopped: bool = False

    def stop(self) -> None:
        self.stopped = True
        for speaker in self.speakers:
            speaker.stop()


class Stage:
    """Who is open, and the one conversation that is held. place: where processes run; command: what a speaker is."""

    def __init__(self, place: Path, command: Sequence[str] = SPEAKER):
        self.place, self.command = place, command
        self.speakers: dict[str, Speaker] = {}
        self.now: Conversation | None = None
        self.held: set[asyncio.Task[None]] = set()
        self.silence: asyncio.TimerHandle | None = None
        self.turn = asyncio.Lock()

    async def say(self, models: Sequence[str], question: dict[str, Any]) -> AsyncIterator[Event]:
        """Events of all answers as they come, each with its side's number. A new question ends the one before.

        Two sides with the same model are answered once. Whoever stops listening stops the answer.
        """
        self.stop()
        self.now = talk = Conversation(models, question)
        task = asyncio.create_task(self._hold(talk))  # not part of the listener, who may be gone before it has ended
        self.held.add(task)
        task.add_done_callback(self.held.discard)
        left = len(models)
        try:
            while left:
                event = await talk.events.get()
                left -= event["what"] in ENDS
                yield event
        finally:
            if left:
                talk.stop()

    def stop(self) -> None:
        if self.now:
            self.now.stop()

    async def close(self) -> None:
        """Nobody is left."""
        if self.silence:
            self.silence.cancel()
        speakers, self.speakers = list(self.speakers.values()), {}
        await asyncio.gather(*(speaker.close() for speaker in speakers))

    async def _hold(self, talk: Conversation) -> None:
        """From the first to the last word, when it is its turn."""
        async with self.turn:
            speakers = await self._cast(talk.models)
            talk.speakers = speakers
            for speaker in speakers:
                speaker.stopped = talk.stopped
            sides = [[n for n, name in enumerate(talk.models) if name == speaker.model] for speaker in speakers]
            await asyncio.gather(*(_follow(one, own, talk) for one, own in zip(speakers, sides, strict=True)))
            talk.speakers = ()
        loop = asyncio.get_running_loop()
        self.silence = loop.call_later(SILENCE, lambda: self.held.add(loop.create_task(self.close())))

    async def _cast(self, models: Sequence[str]) -> list[Speaker]:
        """Those who are to speak; the others are ended first."""
        threads = max((os.cpu_count() or 1) // len(set(models)), 1)
        if self.silence:
            self.silence.cancel()
        for name, speaker in list(self.speakers.items()):
            if name not in models or speaker.threads != threads:
                await self.speakers.pop(name).close()
        for name in models:
            self.speakers.setdefault(name, Speaker(name, threads, self.place, self.command))
        return list(self.speakers.values())


async def _follow(speaker: Speaker, sides: Sequence[int], talk: Conversation) -> None:
    """Everything that one speaker says, for each side that it speaks for."""
    told = ""
    try:
        async for event in speaker.say(talk.question):
            told = event["what"]
            for side in sides:
                talk.events.put_nowait({**event, "side": side})
    except (OSError, ValueError) as error:
        await speaker.close()
        for side in sides if told not in ENDS else ():
            talk.events.put_nowait({"what": "error", "text": f"the model's process could not be run: {error}", "side": side})

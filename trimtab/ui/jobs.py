"""One piece of work at a time: a command of trimtab in a process of its own, its progress, and how it ended.

The command line writes progress as JSON lines on stderr, the result on stdout, and what is wrong as one line. Stopping is Ctrl-C:
it leaves nothing half-written, and only who does not heed it is ended by force.
"""

import asyncio
import json
import os
import shlex
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import time
from typing import Any

from trimtab.core.errors import TrimtabError, UsageError

# -P: a file in the working folder must not be taken for a module.
COMMAND = (sys.executable, "-P", "-c", "from trimtab.cli.main import run; run()")
ERROR = "trimtab: error: "
GRACE = 15.0  # seconds from Ctrl-C to force
LINES = 200  # of what a command says that are kept
LONGEST = 1 << 26  # bytes of a line, or of a result
ENDED = ("done", "failed", "cancelled")


@dataclass
class Job:
    """state: running, done, failed or cancelled. error: the command's one line. phases: those that were seen, in order."""

    number: int
    kind: str
    title: str
    words: tuple[str, ...]
    facts: dict[str, Any]
    state: str = "running"
    begun: float = field(default_factory=time)
    ended: float | None = None
    progress: dict[str, Any] | None = None
    phases: list[str] = field(default_factory=list)
    said: deque[str] = field(default_factory=lambda: deque(maxlen=LINES))
    stopping: bool = False
    error: str = ""
    result: Any = None

    def json(self) -> dict[str, Any]:
        kept = ("number", "begun", "kind", "title", "facts", "state", "progress", "phases", "stopping", "error", "result")
        seconds = (self.ended or time()) - self.begun
        told = {name: getattr(self, name) for name in kept}
        return {**told, "seconds": round(seconds, 2), "said": list(self.said), "command": spelled(self.words)}


Finish = Callable[[Job], None]


class Bench:
    """Where the one job lies. Runs in one event loop; `changed` wakes everybody who watches.

    place: where commands run; command: what `trimtab` is.
    """

    def __init__(self, place: Path, command: Sequence[str] = COMMAND):
        self.place, self.command = place, command
        self.job: Job | None = None
        self.number, self.closed = 0, False
        self.changed = asyncio.Condition()
        self.process: asyncio.subprocess.Process | None = None
        self.task: asyncio.Task[None] | None = None

    def is_busy(self) -> bool:
        return self.job is not None and self.job.state not in ENDED

    async def start(self, kind: str, title: str, words: Sequence[str], finish: Finish, **facts: Any) -> Job:
        """Starts `trimtab words`. finish: makes of what it printed what is shown, in a thread. Raises `UsageError` if busy."""
        if self.is_busy():
            assert self.job
            raise Busy(f"{self.job.title} is still running; wait for it or cancel it")
        self.number += 1
        self.job = Job(self.number, kind, title, tuple(words), facts)
        self.task = asyncio.create_task(self._run(self.job, finish))
        await self._tell()
        return self.job

    async def cancel(self) -> None:
        """Asks the command to stop; whoever watches sees when it did."""
        if self.job and self.is_busy() and not self.job.stopping:
            self.job.stopping = True
            await self._tell()
            self._send(signal.SIGINT)
            asyncio.get_running_loop().call_later(GRACE, self._force, self.process)

    async def close(self) -> None:
        """Nothing is left running, and nobody waits for news."""
        self.closed = True
        await self._tell()
        await self.cancel()
        if self.task:
            await asyncio.wait([self.task], timeout=GRACE / 3)
        self._force(self.process)

    async def watch(self) -> AsyncIterator[dict[str, Any] | None]:
        """The job as it is now, then again whenever something about it changes, until `close`; None before the first one."""
        seen: Any = object()
        while True:
            async with self.changed:
                while self._state() == seen and not self.closed:
                    await self.changed.wait()
                if self.closed:
                    return
                seen = self._state()
                told = self.job.json() if self.job else None
            yield told

    def _state(self) -> Any:
        """What a watcher compares; the clock alone is no change."""
        return {**self.job.json(), "seconds": 0} if self.job else None

    async def _run(self, job: Job, finish: Finish) -> None:
        try:
            self.process = await asyncio.create_subprocess_exec(
                *self.command,
                *job.words,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                cwd=self.place,
                start_new_session=True,
                limit=LONGEST,
            )
            if job.stopping:  # cancelled before there was anybody to tell
                self._send(signal.SIGINT)
            assert self.process.stdout
            printed, _ = await asyncio.gather(self.process.stdout.read(), self._listen(job, self.process))
            await self._end(job, await self.process.wait(), printed, finish)
        except (OSError, ValueError) as error:
            job.state, job.error = "failed", f"the command could not be run: {error}"
        finally:
            job.ended, self.process = time(), None
            await self._tell()

    async def _listen(self, job: Job, process: asyncio.subprocess.Process) -> None:
        assert process.stderr
        async for line in process.stderr:
            _heed(job, line.decode("utf-8", "replace").rstrip())
            await self._tell()

    async def _end(self, job: Job, code: int, printed: bytes, finish: Finish) -> None:
        if code == 0:
            try:
                job.result = json.loads(printed) if printed.strip() else None
                await asyncio.to_thread(finish, job)
                job.state = "done"
            except (TrimtabError, ValueError) as error:
                job.state, job.error = "failed", str(error)
        elif job.stopping:
            job.state = "cancelled"
        else:
            job.state, job.error = "failed", _last_words(job, code)

    async def _tell(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    def _send(self, number: signal.Signals) -> None:
        if self.process and self.process.returncode is None:
            os.killpg(self.process.pid, number)

    def _force(self, process: asyncio.subprocess.Process | None) -> None:
        if process and process is self.process:
            self._send(signal.SIGKILL)


class Busy(UsageError):
    """One at a time."""


def _heed(job: Job, line: str) -> None:
    """A line of progress, or something to read."""
    if line.startswith("{"):
        try:
            told = json.loads(line)
        except ValueError:
            told = None
        if isinstance(told, dict) and isinstance(told.get("phase"), str):
            job.progress = told
            if told["phase"] not in job.phases:
                job.phases.append(told["phase"])
            return
    if line.strip():
        job.said.append(line)


def _last_words(job: Job, code: int) -> str:
    """The command's own line; where it had no time for one, what ended it."""
    told = [line.removeprefix(ERROR) for line in job.said if line.startswith(ERROR)]
    if told:
        return told[-1]
    if code < 0:
        name = signal.Signals(-code).name
        return f"the command was ended by {name}{', perhaps for want of memory' if name == 'SIGKILL' else ''}"
    return job.said[-1] if job.said else f"the command ended with code {code}"


def spelled(words: Sequence[str]) -> str:
    """As it would be typed."""
    return shlex.join(["trimtab", *words])

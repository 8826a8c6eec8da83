"""Tasks in processes of their own, several at a time: what one of them does to memory or to the interpreter ends with it.

A task is JSON that a module, run by `python -m`, reads as the first line of its stdin. It answers in JSON lines on stdout:
any number of `{"what": "progress", "value": ...}`, then one "result" or "error". Its stdin stays open as long as its parent
lives, so that a child whose parent was killed reads the end of it and stops as well (`as_child`).
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Queue
from tempfile import TemporaryFile
from typing import IO, Any

GRACE = 5.0  # seconds that a child has to put its things away
ENDS = ("result", "error")
Say = Callable[[str, Any], None]


@dataclass(frozen=True)
class Said:
    """what: "progress", "result" or "error" (one line of text); every task ends with one of the last two."""

    task: int
    what: str
    value: Any


@contextmanager
def running(module: str, tasks: Sequence[Any], jobs: int, variables: Mapping[str, str], loud: bool) -> Iterator[Iterator[Said]]:
    """Starts `jobs` children at a time, with these environment variables; gives what they say until all tasks have ended.

    loud: what children write to stderr is shown, and not only the last line of those that fail. On leaving, whatever the
    reason, no child is left.
    """
    crew = _Crew(module, {**os.environ, **variables}, loud)
    with ThreadPoolExecutor(jobs) as pool:
        try:
            for number, task in enumerate(tasks):
                pool.submit(crew.follow, number, task)
            yield _until_all_ended(crew.said, len(tasks))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            crew.stop()


def _until_all_ended(said: "Queue[Said]", tasks: int) -> Iterator[Said]:
    while tasks:
        now = said.get()
        tasks -= now.what in ENDS
        yield now


class _Crew:
    """The children that run now. `follow` is called in a thread per child."""

    def __init__(self, module: str, variables: Mapping[str, str], loud: bool):
        self.command, self.variables, self.loud = [sys.executable, "-m", module], variables, loud
        self.said: Queue[Said] = Queue()
        self.lock = threading.Lock()
        self.children: set[subprocess.Popen[str]] = set()
        self.stopped = False

    def follow(self, number: int, task: Any) -> None:
        """Starts a child, passes on what it says, and says how it ended."""
        try:
            with TemporaryFile("w+") as log, self._child(None if self.loud else log) as child:
                end = self._listen(child, number, task)
                self.said.put(end or Said(number, "error", _last_words(child.wait(), log)))
        except Exception as error:  # whatever it is: a task that does not end would keep the parent waiting
            self.said.put(Said(number, "error", f"its process could not be run: {error}"))

    @contextmanager
    def _child(self, log: IO[str] | None) -> Iterator["subprocess.Popen[str]"]:
        with self.lock:
            if self.stopped:
                raise ChildProcessError("stopped before it began")
            child = subprocess.Popen(
                self.command, env=self.variables, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
            )
            self.children.add(child)
        try:
            with child:
                yield child
                child.wait()  # before its stdin is closed, which would end it
        finally:
            with self.lock:
                self.children.discard(child)

    def _listen(self, child: "subprocess.Popen[str]", number: int, task: Any) -> Said | None:
        """Its last word; None if it ended without one."""
        assert child.stdin
        assert child.stdout
        end = None
        _tell(child.stdin, task)
        for line in child.stdout:
            said = Said(number, **json.loads(line))
            if said.what in ENDS:
                end = said
            else:
                self.said.put(said)
        return end

    def stop(self) -> None:
        """Ends all children: politely, then not."""
        with self.lock:
            self.stopped = True
            left = set(self.children)
        for child in left:
            child.terminate()
        for child in left:
            try:
                child.wait(GRACE)
            except subprocess.TimeoutExpired:
                child.kill()


def _tell(stdin: IO[str], task: Any) -> None:
    try:
        stdin.write(json.dumps(task) + "\n")
        stdin.flush()
    except BrokenPipeError:
        return  # it has ended already; why is found in what it left behind


def _last_words(code: int, log: IO[str]) -> str:
    """Why a child ended without a result."""
    if code < 0:
        name = signal.Signals(-code).name
        return f"its process was ended by {name}{', perhaps for want of memory' if name == 'SIGKILL' else ''}"
    log.seek(0)
    lines = [line.strip() for line in log if line.strip()]
    return f"unexpected {lines[-1]}" if lines else f"its process ended with code {code}"


def as_child(work: Callable[[Any, Say], None]) -> None:
    """What a module that is run by `running` does: `work(task, say)`. stdout is for what it says, prints go to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends its children
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    task = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    work(task, lambda what, value: print(json.dumps({"what": what, "value": value}), file=answers, flush=True))


def _end_with_parent() -> None:
    os.read(0, 1)  # not sys.stdin: its lock would be held by this thread when the interpreter shuts down
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(GRACE)
    os._exit(128 + signal.SIGTERM)

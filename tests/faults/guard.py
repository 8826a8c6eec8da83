"""What may become of an input: it is refused in one line, or taken; anything else is a fault.

`judged` works in this process, thousands of times a second, and is stopped by an alarm; `apart` forks, so that memory is
counted, and what hangs in compiled code is ended too.
"""

import os
import resource
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from trimtab.core.errors import TrimtabError

LONGEST_WAIT = 5.0  # seconds of processor time: machines are shared, and sleep
LONGEST_SLEEP = 60.0  # seconds by the clock: what waits for ever takes no processor time
LONGEST_MESSAGE = 2000
REFUSED, TAKEN, FAULT = "refused", "taken", "fault"
MEMORY = 200 << 20  # bytes beside twice the size of the file


@dataclass(frozen=True)
class Outcome:
    """kind: refused, taken or fault. grown: bytes of memory that it took at its peak, where that was measured."""

    kind: str
    said: str
    seconds: float = 0.0
    grown: int = 0


class TooLong(BaseException):
    """Raised by the alarm; not an Exception, so that nothing takes it for an error of the input."""


def judged(work: Callable[[], Any]) -> Outcome:
    """Runs `work` here."""
    start = time.process_time()
    try:
        with _alarm():
            kind, said = _called(work)
    except TooLong:
        kind, said = FAULT, f"still at it after {LONGEST_WAIT:g} s"
    return Outcome(kind, said, time.process_time() - start)


def apart(work: Callable[[], Any], size: int = 0) -> Outcome:
    """Runs `work` in a fork. size: bytes of the input; more than twice as much and 200 MB of memory are a fault."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        _in_the_fork(work, writer)
    os.close(writer)
    try:
        answer = _heard(reader) if select.select([reader], [], [], LONGEST_SLEEP)[0] else ""
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)
        _, status, used = os.wait4(child, 0)
    seconds = used.ru_utime + used.ru_stime
    if not answer:
        return Outcome(FAULT, f"ended by signal {os.WTERMSIG(status)} after {seconds:.1f} s", seconds)
    kind, grown, said = answer.split("\0", 2)
    if int(grown) > 2 * size + MEMORY:
        return Outcome(FAULT, f"took {int(grown) >> 20} MB for {size >> 20} MB", seconds, int(grown))
    if seconds > LONGEST_WAIT:
        return Outcome(FAULT, f"took {seconds:.1f} s: {said}", seconds, int(grown))
    return Outcome(kind, said, seconds, int(grown))


def _in_the_fork(work: Callable[[], Any], writer: int) -> None:
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (int(2 * LONGEST_WAIT) + 1,) * 2)
        before = resident()
        kind, said = _called(work)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        os.write(writer, f"{kind}\0{max(0, peak - before)}\0{said}".encode("utf-8", "replace")[:60000])
    finally:
        os._exit(0)


def _heard(reader: int) -> str:
    pieces = []
    while piece := os.read(reader, 65536):
        pieces.append(piece)
    return b"".join(pieces).decode()


def resident() -> int:
    """Bytes of memory that this process holds now."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _called(work: Callable[[], Any]) -> tuple[str, str]:
    try:
        work()
    except TrimtabError as error:
        said = str(error)
        if "\n" in said or len(said) > LONGEST_MESSAGE or not said:
            return FAULT, f"a message of {said.count(chr(10)) + 1} lines, {len(said)} characters: {said[:200]!r}"
        return REFUSED, said
    except (Exception, SystemExit) as error:  # this is what is looked for
        return FAULT, f"{type(error).__name__}: {error!s:.200}"
    return TAKEN, ""


@contextmanager
def _alarm() -> Iterator[None]:
    start, used = time.monotonic(), time.process_time()

    def ring(*_: Any) -> None:
        if time.process_time() - used > LONGEST_WAIT or time.monotonic() - start > LONGEST_SLEEP:
            raise TooLong

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, LONGEST_WAIT, LONGEST_WAIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@dataclass
class Tally:
    """Outcomes of one kind of input, counted."""

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys((REFUSED, TAKEN, FAULT), 0))
    faults: list[str] = field(default_factory=list)
    slowest: float = 0.0
    grown: int = 0

    def add(self, name: str, outcome: Outcome) -> Outcome:
        self.counts[outcome.kind] += 1
        self.slowest, self.grown = max(self.slowest, outcome.seconds), max(self.grown, outcome.grown)
        if outcome.kind == FAULT:
            self.faults.append(f"{name}: {outcome.said}")
        return outcome

    @property
    def cases(self) -> int:
        return sum(self.counts.values())

    def numbers(self) -> dict[str, Any]:
        """For the ledger."""
        return {
            "cases": self.cases,
            **self.counts,
            "slowest_seconds": round(self.slowest, 3),
            "most_memory": self.grown,
            "examples": self.faults[:5],
        }

"""Progress on stderr: a bar on a terminal, elsewhere now and then a plain line that a log can keep, or JSON for a program."""

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from time import monotonic
from typing import TYPE_CHECKING, TextIO

from trimtab.cli.manners import Terminated, hushed, is_set
from trimtab.cli.show import size
from trimtab.core.errors import UsageError, did_you_mean
from trimtab.core.progress import Progress, Watcher, unwatched

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

EVERY = 2.0  # seconds between plain lines
OFTEN = 0.1  # seconds between lines of JSON
STYLES = ("auto", "json")
NO_BARS = ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS")
DUMB = ("dumb", "unknown")


@contextmanager
def working(quiet: bool = False, verbose: bool = False, style: str = "auto", resumable: bool = False) -> Iterator[Watcher]:
    """Yields who watches the work. Meanwhile what anybody prints goes to stderr: stdout is for results.

    style: json for lines that a program reads. resumable: SIGTERM ends the work in good order (`Terminated`). Raises
    `UsageError` for a style that is none.
    """
    if style not in STYLES:
        raise UsageError(f"--progress cannot be {style!r}{did_you_mean(style, STYLES)}")
    bars = wants_bars(sys.stderr)  # asked before `hushed` sets variables for the libraries
    with redirect_stdout(sys.stderr), hushed(verbose), heeding_interrupts(resumable) as heeding:
        if quiet:
            yield heeding(unwatched)
        elif style == "json":
            yield heeding(JsonWatcher(sys.stderr))
        elif bars:
            with _bars() as shown:
                yield heeding(BarWatcher(shown))
        else:
            yield heeding(LineWatcher(sys.stderr))


@contextmanager
def heeding_interrupts(terminations: bool = False) -> Iterator[Callable[[Watcher], Watcher]]:
    """A Ctrl-C is heeded even where a library loses the exception, as imports of C extensions do: at the next event."""
    heard = {signal.SIGINT: KeyboardInterrupt, **({signal.SIGTERM: Terminated} if terminations else {})}
    pressed: list[int] = []

    def remember(number: int, frame: object) -> None:
        pressed.append(number)
        raise heard[signal.Signals(number)]

    def heeding(watch: Watcher) -> Watcher:
        def watched(now: Progress) -> None:
            if pressed:
                raise heard[signal.Signals(pressed[-1])]
            watch(now)

        return watched

    # Handlers belong to the main thread; elsewhere the caller's stay as they are.
    mine = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, remember) for number in heard} if mine else {}
    try:
        yield heeding
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def wants_bars(stream: TextIO) -> bool:
    """A terminal that can redraw a line, and no variable that forbids it."""
    return stream.isatty() and os.environ.get("TERM") not in DUMB and not any(map(is_set, NO_BARS))


class LineWatcher:
    """At most one line every `EVERY` seconds, and never two for the same block."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = monotonic):
        self.stream, self.clock = stream, clock
        self.phase, self.done, self.begun = "", 0, 0.0
        self.shown: tuple[str, int] | None = None
        self.last = -float("inf")

    def __call__(self, now: Progress) -> None:
        time = self.clock()
        if now.phase != self.phase or now.done < self.done:
            self.phase, self.begun, self.shown = now.phase, time, None
        self.done = now.done
        if (now.phase, now.done) == self.shown or time - self.last < EVERY:
            return
        self.shown, self.last = (now.phase, now.done), time
        print(self._line(now, time - self.begun), file=self.stream, flush=True)

    def _line(self, now: Progress, elapsed: float) -> str:
        left = f", about {spell(elapsed / now.done * (now.total - now.done))} left" if now.done else ""
        what = f" {now.detail}" if now.detail else ""
        return f"trimtab: {now.phase} {now.done}/{now.total}{what}, {spell(elapsed)}{left}, {size(memory())}"


class JsonWatcher:
    """One object a line: phase, done, total, detail, seconds since the phase began, bytes held; at most one every `OFTEN`.

    A phase's first and last event are always told, so that whoever reads knows what is going on.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = monotonic):
        self.stream, self.clock = stream, clock
        self.phase, self.done, self.begun = "", 0, 0.0
        self.last = -float("inf")

    def __call__(self, now: Progress) -> None:
        time = self.clock()
        begins = now.phase != self.phase or now.done < self.done
        if begins:
            self.phase, self.begun = now.phase, time
        self.done = now.done
        if not (begins or now.done == now.total or time - self.last >= OFTEN):
            return
        self.last = time
        told = {**vars(now), "seconds": round(time - self.begun, 3), "memory": memory()}
        print(json.dumps(told), file=self.stream, flush=True)


class BarWatcher:
    """One bar for the phase at hand; a finished phase leaves no trace."""

    def __init__(self, bars: "Bars"):
        self.bars = bars
        self.phase: str | None = None
        self.done = 0

    def __call__(self, now: Progress) -> None:
        if now.phase != self.phase or now.done < self.done:
            for task in list(self.bars.task_ids):
                self.bars.remove_task(task)
            self.bars.add_task(now.phase, total=now.total, detail="", memory="")
        self.phase, self.done = now.phase, now.done
        task = self.bars.task_ids[-1]
        self.bars.update(task, completed=now.done, total=now.total, detail=now.detail, memory=size(memory()))


def _bars() -> "Bars":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars
    from rich.table import Column

    return Bars(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[memory]}"),
        TextColumn("{task.fields[detail]}", table_column=Column(no_wrap=True, overflow="ellipsis"), markup=False),
        console=Console(stderr=True),
        transient=True,
    )


def memory() -> int:
    """Bytes that this process holds now."""
    import psutil

    held: int = psutil.Process().memory_info().rss
    return held


def spell(seconds: float) -> str:
    """75 -> '1 min 15 s'."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"

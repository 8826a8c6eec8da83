"""Processes that are killed while they compress, adapt, export or measure: at a named instant, at random, or not at all.

Importing torch and transformers takes seconds, and a kill takes a process. So one process, started by `Victims`, imports
everything once and forks a child for every job; the child does what it is told, and is killed as asked. Run with one
thread: a fork has no pool of threads.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from trimtab.host.instants import INSTANTS as INSTANTS
from trimtab.host.instants import listen, reached

MODULE = "trimtab.testing.faults"
SEARCHED = (
    "level: written",  # of a search: on disk under a temporary name
    "level: kept",
    "outcome: kept",
)


class Victims:
    """`with Victims() as victims: victims.run(...)`; each `run` is a process of its own."""

    def __enter__(self) -> Self:
        variables = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        self.server = subprocess.Popen(
            [sys.executable, "-m", MODULE], env=variables, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.server.kill()
        self.server.communicate()

    def run(
        self,
        words: Mapping[str, Any],
        instant: str = "",
        nth: int = 1,
        after: float | None = None,
        what: str = "compress",
        heard: Path | None = None,
    ) -> int:
        """How a process ended that was to `compress(**words)`: 0, -9 if it was killed, 1 for an error (shown on stderr).

        instant, nth: it is killed when it reaches the instant for the n-th time; after: so many seconds after it began.
        what: or "export", opened again in the same process; "adapt", `pace` as a mapping; or "measure", with `out` for the
        file that the numbers go to. heard: a file that is told how often each instant was reached, if none was the last.
        """
        assert self.server.stdin
        assert self.server.stdout
        job = {"words": words, "instant": instant, "nth": nth, "after": after, "what": what, "heard": heard}
        self.server.stdin.write(json.dumps(job, default=str) + "\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline())


def _serve() -> None:
    import torch

    # Before the forks, once for all.
    import trimtab.host.adapt
    import trimtab.host.compress
    import trimtab.host.export.job
    import trimtab.measure  # noqa: F401
    from trimtab.core.registry import get, ids

    for id in ids():
        get(id)
    _name_instants_of_searches()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            os._exit(_end(json.loads(line)))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


def _name_instants_of_searches() -> None:
    """The engine does not know of instants, so they are put around what it calls."""
    from trimtab.engine import levels, search

    places: tuple[tuple[Any, str], ...] = ((levels, "save_file"), (levels, "_write"), (search.Outcomes, "add"))
    for (owner, name), instant in zip(places, SEARCHED, strict=True):
        setattr(owner, name, _saying(instant, getattr(owner, name)))


def _saying(instant: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        made = function(*arguments)
        reached(instant)
        return made

    return call


def _end(job: Mapping[str, Any]) -> int:
    heard: Counter[str] = Counter()

    def kill_at(instant: str) -> None:
        heard[instant] += 1
        if instant == job["instant"] and heard[instant] == job["nth"]:
            os.kill(os.getpid(), signal.SIGKILL)

    listen(kill_at)
    if job["after"] is not None:
        threading.Timer(job["after"], os.kill, (os.getpid(), signal.SIGKILL)).start()
    try:
        JOBS[job["what"]](**job["words"])
        if job["heard"]:
            Path(job["heard"]).write_text(json.dumps(heard), encoding="utf-8")
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _compress(**words: Any) -> None:
    from trimtab.host.compress import compress

    compress(**words)


def _adapt(pace: Mapping[str, Any], **words: Any) -> None:
    from trimtab.host.adapt import adapt
    from trimtab.host.trainer import Pace

    adapt(**words, pace=Pace(**pace))


def _export(**words: Any) -> None:
    from trimtab.host.export import job, reopen

    reopen.reopen_stock = _opened_here
    reopen.llama_python = lambda: None
    job.export(**words)


def _opened_here(folder: Path, ids: Any, *told: Any) -> Any:
    """What a reader in a process of its own says, seconds sooner."""
    from transformers import AutoModelForCausalLM

    from trimtab.host.export import reopen

    return reopen.Reopened("the same process", reopen.logits(AutoModelForCausalLM.from_pretrained(folder), ids), [], [])


def _measure(out: str, **words: Any) -> None:
    from trimtab.measure import measure

    found = {one.name: [one.value, one.stderr, one.n] for one in measure(**words) if one.name != "peak memory"}
    Path(out).write_text(json.dumps(found), encoding="utf-8")


JOBS: dict[str, Callable[..., None]] = {"compress": _compress, "adapt": _adapt, "export": _export, "measure": _measure}

if __name__ == "__main__":
    _serve()

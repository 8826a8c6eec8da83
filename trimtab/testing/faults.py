"""Processes that are killed while they compress: at a named instant, at a random moment, or not at all.

Importing torch and transformers takes seconds, and a kill takes a process. So one process, started by `Victims`, imports
everything once and forks a child for every job; the child does what `compress` does, and is killed as asked. Run with one
thread: a fork has no pool of threads.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from trimtab.host.instants import INSTANTS as INSTANTS
from trimtab.host.instants import listen

MODULE = "trimtab.testing.faults"


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

    def run(self, words: Mapping[str, Any], instant: str = "", nth: int = 1, after: float | None = None) -> int:
        """How a process ended that was to `compress(**words)`: 0, -9 if it was killed, 1 for an error (shown on stderr).

        instant, nth: it is killed when it reaches the instant for the n-th time; after: so many seconds after it began.
        """
        assert self.server.stdin
        assert self.server.stdout
        job = {"words": {k: str(v) if isinstance(v, Path) else v for k, v in words.items()}, "instant": instant, "nth": nth}
        self.server.stdin.write(json.dumps({**job, "after": after}) + "\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline())


def _serve() -> None:
    import torch

    import trimtab.host.compress  # noqa: F401 - before the forks, once for all

    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            os._exit(_end(json.loads(line)))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


def _end(job: Mapping[str, Any]) -> int:
    from trimtab.host.compress import compress

    left = [job["nth"]]

    def kill_at(instant: str) -> None:
        left[0] -= instant == job["instant"]
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)

    listen(kill_at)
    if job["after"] is not None:
        threading.Timer(job["after"], os.kill, (os.getpid(), signal.SIGKILL)).start()
    try:
        compress(**job["words"])
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    _serve()

"""One side of a comparison is a process that answers commands, so that several sides can take turns within one run.

A command is one JSON document on a line of stdin, {"do": name, ...}; the answer is one document on a line of stdout. Standard
library only, because it runs in several environments. Seconds are taken inside the process: the pipe costs nothing.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

Answer = Mapping[str, Any]


def serve(commands: Mapping[str, Callable[..., Answer]]) -> None:
    """Answers until stdin ends. What goes wrong is an answer, too: {"red": why}."""
    # Libraries print to stdout; that would be read as an answer.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        answers.write(json.dumps(_answered(commands, json.loads(line))) + "\n")
        answers.flush()


def _answered(commands: Mapping[str, Callable[..., Answer]], request: dict[str, Any]) -> Answer:
    try:
        return commands[request.pop("do")](**request)
    except Exception as error:
        return {"red": f"{type(error).__name__}: {(str(error).splitlines() or ['no reason given'])[0]:.300}"}


class Side:
    """The other end: a process that serves. log: where its stderr goes."""

    def __init__(self, command: Sequence[object], log: TextIO, environment: Mapping[str, str]):
        words = [str(word) for word in command]
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env={**os.environ, **environment}
        )

    def ask(self, do: str, **what: Any) -> dict[str, Any]:
        """The answer. A process that is gone answers {"red": ...}, too."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps({"do": do, **what}, default=str) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return {"red": f"the process ended with {self.process.wait()}"}
        line = self.process.stdout.readline()
        found: dict[str, Any] = json.loads(line) if line else {"red": f"the process ended with {self.process.wait()}"}
        return found

    def close(self) -> None:
        """Ends the process. It holds nothing that is not answered, so it is not asked whether it is ready to go."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


def resident() -> int:
    """Bytes that this process holds; of other processes see `Side`."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no VmRSS; memory can be measured on Linux only")

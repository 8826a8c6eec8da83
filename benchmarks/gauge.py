"""Seconds and memory of one process, stage by stage: what both sides of a comparison are measured with.

Standard library only, because it runs in two environments. A stage's peak is the kernel's own high-water mark of resident
memory (VmHWM), set back when the stage begins, so that a short peak is not missed and an earlier stage's is not counted.
Processor seconds stand beside wall seconds: where they fall far short of threads x wall, something else was running.
"""

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Gauge:
    """`with gauge("load"): ...` notes a stage's seconds, processor seconds, peak and resident memory at its end.

    Bytes; `file`: the part of `after` that is pages of files, such as weights that were mapped and not read.
    """

    def __init__(self) -> None:
        self.stages: dict[str, dict[str, float]] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        RESET.write_text("5")  # 5: set the high-water mark back to what is resident now
        begun, busy = perf_counter(), process_time()
        yield
        self.stages[stage] = {
            "seconds": perf_counter() - begun,
            "processor": process_time() - busy,
            "peak": resident("VmHWM"),
            "after": resident("VmRSS"),
            "file": resident("RssFile"),
        }


def resident(field: str) -> int:
    """Bytes of a memory line of this process' status."""
    for line in STATUS.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise OSError(f"{STATUS} has no {field}; memory can be measured on Linux only")


def use_threads(count: int) -> None:
    """Before torch is imported: the pools of OpenMP and MKL are sized when they are first used."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(count)


def versions(*packages: str) -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def hand_over(path: Path, result: dict[str, Any]) -> None:
    path.write_text(json.dumps(result), encoding="utf-8")

"""The most memory that a piece of work took, as the system counts it for the process, or the device for itself.

A process only ever remembers its highest mark. Linux can be asked to forget it, so that several models measured by one
process do not inherit the mark of the largest; elsewhere the mark is that of the whole process, and the setting says so.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from trimtab.core.report import Measurement
from trimtab.host import peak

STATUS, FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@contextmanager
def peak_memory(model: nn.Module) -> Iterator[list[Measurement]]:
    """Yields a list that holds one measurement, "peak memory" in bytes, once the work inside is done."""
    found: list[Measurement] = []
    device = next(model.parameters()).device
    since = _forget(device)
    yield found
    setting = {"device": str(device), "since": since}
    found.append(Measurement("peak memory", float(_highest(device)), 0.0, 1, "bytes", setting))


def _forget(device: torch.device) -> str:
    """From when on the highest mark counts now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return "the measurement began"
    try:
        FORGET.write_text("5")  # resets the high-water mark, see proc(5)
    except OSError:
        return "the process began"
    return "the measurement began"


def _highest(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if STATUS.exists():
        line = next(line for line in STATUS.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return peak.peak_memory()

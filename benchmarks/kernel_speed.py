"""How fast packed weights are streamed through one product: GB/s, and the share of what this memory gives to plain reading.

    python benchmarks/kernel_speed.py                       the shapes of three models, all formats, about two minutes
    python benchmarks/kernel_speed.py --quick               one shape of each kind, half a minute
    python benchmarks/kernel_speed.py --instructions avx2   another instruction set

Every kernel is compared with `dense()` in float64 first; on a mismatch its speed is not measured. Reading and products take
turns, so a machine that other programs use slows both. Matrices of one shape are repeated until they are several times the last
cache.
"""

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch

from trimtab import kernels
from trimtab.core.kinds import LinearWeight
from trimtab.formats import BitPlanes, Dense, Grouped
from trimtab.kernels.module import native
from trimtab.kernels.repack import repack

GROUP_SIZE = 64
SHAPES = {  # [out, in] of SmolLM2-135M, of a 0.5 B and of a 1.1 B model
    "135M qo": (576, 576),
    "135M up": (1536, 576),
    "135M down": (576, 1536),
    "0.5B up": (4864, 896),
    "1.1B qo": (2048, 2048),
    "1.1B up": (5632, 2048),
    "1.1B down": (2048, 5632),
}
QUICK = ("135M up", "1.1B qo")
FORMATS = ("grouped2", "grouped3", "grouped4", "grouped8", "planes1", "planes2", "planes3", "bfloat16", "float32")
ALLOWED = {"float32": 2e-6, "int16": 2e-4, "int8": 2e-2}  # of sum |w x|, for activations of one size


@dataclass
class Line:
    """One measurement. share: of the read bandwidth measured in turn with it."""

    shape: str
    format: str
    activations: str
    instructions: str
    threads: int
    megabytes: float
    microseconds: float
    gigabytes_per_second: float
    share: float


def weight(kind: str, out: int, in_: int, draw: torch.Generator) -> LinearWeight:
    """Random codes and scales: zeros would flatter every kernel."""
    groups = in_ // GROUP_SIZE
    if kind in ("bfloat16", "float32"):
        return Dense(torch.randn(out, in_, generator=draw).to(getattr(torch, kind)))
    count = int(kind[-1])
    codes = torch.randint(0, 2**count, (out, in_), dtype=torch.uint8, generator=draw)
    if kind.startswith("grouped"):
        zero = torch.randint(0, 2**count, (out, groups), dtype=torch.uint8, generator=draw)
        return Grouped(codes, torch.rand(out, groups, generator=draw).half(), zero, count, GROUP_SIZE)
    scale, offset = torch.randn(out, groups, count, generator=draw), torch.randn(out, groups, generator=draw)
    return BitPlanes(codes, scale.half(), offset.half(), GROUP_SIZE)


def gate(made: LinearWeight, activations: str, instructions: str) -> str:
    """Why this kernel must not be timed, or nothing."""
    x = torch.randn(3, made.shape[1], generator=torch.Generator().manual_seed(1))
    y = kernels.linear(x, made, activations=activations, instructions=instructions)
    dense = made.dense().double()
    off = (y.double() - x.double() @ dense.T).abs() / (x.double().abs() @ dense.abs().T)
    return "" if bool((off <= ALLOWED[activations]).all()) else f"wrong by {float(off.max()):.1e}"


def last_cache() -> int:
    """Bytes of the largest cache; 32 MB where the system does not say."""
    sizes = [f.read_text().strip() for f in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max((int(s[:-1]) * 1024 for s in sizes if s.endswith("K")), default=32 << 20)


def timed(work: Callable[[], object]) -> float:
    begin = perf_counter()
    work()
    return perf_counter() - begin


def measure(made: LinearWeight, name: str, kind: str, activations: str, options: argparse.Namespace, buffer: Any) -> list[Line]:
    out, in_ = made.shape
    first = repack(made)
    matrices = [first, *(repack(made) for _ in range(options.working_set // first.nbytes))]
    x = np.random.default_rng(0).standard_normal((1, in_), np.float32)
    y, digits = np.empty((1, out), np.float32), kernels.ACTIVATIONS[activations]
    lines = []
    for threads in options.threads:

        def through(threads: int = threads) -> None:
            for matrix in matrices:
                native().linear(matrix, x, y, None, digits, options.instructions, threads)

        seconds, reading, end = [], [], perf_counter() + options.seconds
        while perf_counter() < end or len(seconds) < 3:
            seconds.append(timed(through) / len(matrices))
            reading.append(timed(lambda threads=threads: native().read(buffer, options.instructions, threads)) / buffer.size)
        took = median(seconds)
        share = median(reading) * first.nbytes / took
        size = first.nbytes / 1e6
        lines.append(Line(name, kind, activations, options.instructions, threads, size, took * 1e6, size / 1e3 / took, share))
    return lines


def shown(line: Line) -> str:
    return (
        f"{line.shape:10} {line.format:9} {line.activations:8} {line.threads} threads {line.megabytes:7.2f} MB "
        f"{line.microseconds:8.1f} us {line.gigabytes_per_second:6.1f} GB/s {line.share:6.0%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=None)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--activations", nargs="+", choices=kernels.ACTIVATIONS, default=["int8", "int16"])
    parser.add_argument("--instructions", default=None)
    parser.add_argument("--threads", nargs="+", type=int, default=None)
    parser.add_argument("--seconds", type=float, default=0.4, help="per measurement")
    parser.add_argument("--json", action="store_true", help="one line per measurement")
    options = parser.parse_args()
    options.instructions = kernels.instruction_set(options.instructions)
    options.threads = options.threads or list(range(1, native().cores() + 1))
    options.working_set = max(4 * last_cache(), 128 << 20)
    buffer = np.random.default_rng(1).integers(0, 256, 4 * options.working_set, dtype=np.uint8)
    draw = torch.Generator().manual_seed(0)
    busy = ", ".join(f"{load:.1f}" for load in os.getloadavg())
    print(f"{kernels.describe()}; load {busy}; working set {options.working_set >> 20} MB", flush=True)
    for name in options.shapes or (QUICK if options.quick else SHAPES):
        for kind in options.formats:
            made = weight(kind, *SHAPES[name], draw)
            for activations in ["float32"] if isinstance(made, Dense) else options.activations:
                red = gate(made, activations, options.instructions)
                if red:
                    print(f"{name:10} {kind:9} {activations:8} RED: {red}")
                    continue
                for line in measure(made, name, kind, activations, options, buffer):
                    print(json.dumps(asdict(line)) if options.json else shown(line), flush=True)


if __name__ == "__main__":
    main()

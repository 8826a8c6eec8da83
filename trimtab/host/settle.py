"""Weights that were mapped from files move into memory of their own.

A mapped file stays resident as a whole until its last tensor is let go: a sweep that replaces matrix after matrix would
hold the old ones and the new ones side by side. A tensor with memory of its own is gone when it is replaced. The pages of
the file are given back tensor by tensor, so that the move takes one tensor more than the model, not twice the model.
"""

import ctypes
import mmap
import sys
from bisect import bisect_right
from pathlib import Path

from torch import Tensor, nn

MAPS = Path("/proc/self/maps")
Ranges = list[tuple[int, int]]


def settle(model: nn.Module) -> None:
    """Give every parameter and buffer that lies in a mapped file memory of its own. Only Linux tells; elsewhere: nothing."""
    if not sys.platform.startswith("linux"):
        return
    files = _mapped_files()
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_cpu and (end := _end_of_mapping(files, tensor.data_ptr())):
            mapped = tensor.data
            tensor.data = mapped.clone()
            _give_back(mapped, end)


def _mapped_files() -> Ranges:
    """[start, end) of every mapping of a file in this process, ascending."""
    ranges = []
    for line in MAPS.read_text(encoding="utf-8").splitlines():
        span, _access, _offset, _device, inode, *_name = line.split(maxsplit=5)
        if inode != "0":
            start, _, end = span.partition("-")
            ranges.append((int(start, 16), int(end, 16)))
    return ranges


def _end_of_mapping(files: Ranges, address: int) -> int | None:
    at = bisect_right(files, address, key=lambda span: span[0]) - 1
    return files[at][1] if at >= 0 and address < files[at][1] else None


def _give_back(mapped: Tensor, end: int) -> None:
    """Drop the whole pages under a tensor nobody reads any more. Their contents are still in the file."""
    page = mmap.PAGESIZE
    first = -(-mapped.data_ptr() // page) * page
    last = min(mapped.data_ptr() + mapped.nbytes, end) // page * page
    if last > first:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_DONTNEED)

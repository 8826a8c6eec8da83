"""How many bytes a safetensors file takes beside its tensors: a length, and JSON that names every tensor.

    {"__metadata__":{"format":"pt"},"NAME":{"dtype":"F16","shape":[576,9],"data_offsets":[0,10368]},...}

Where in the file a tensor begins is known only when all are (`header`). Before that, offsets count with as many digits as the
largest can have, and the answer is a bound: at most a few bytes per tensor above what is written (`entry`, `frames`).
"""

import json
from collections.abc import Mapping
from math import prod

import torch

Layout = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
# In the library's order, of which the last come first in a file.
ORDER = ("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "I16", "U16", "F16", "BF16", "I32", "U32", "F32", "F64", "I64", "U64")
NAMES = {torch.bool: "BOOL", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.bfloat16: "BF16"}
SHARD = 2 * 10**9  # bytes: files are split at 4 GB, and any two neighbours hold more than that together
FRAME = len('{"__metadata__":{"format":"pt"}}') + 8 + 7  # with the length before it and the padding behind it


def kind(dtype: torch.dtype) -> str:
    """What the format calls a dtype."""
    unsigned = str(dtype).startswith("torch.uint")
    return NAMES.get(dtype) or f"{'F' if dtype.is_floating_point else 'U' if unsigned else 'I'}{8 * dtype.itemsize}"


def order(tensors: Layout) -> list[str]:
    """Names in the order in which the tensors lie in a file."""
    return sorted(tensors, key=lambda name: (-ORDER.index(kind(tensors[name][1])), name))


def header(tensors: Layout) -> bytes:
    """What a file of these tensors begins with, to the byte: its length, and the JSON."""
    lines: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order(tensors):
        shape, dtype = tensors[name]
        start, end = end, end + prod(shape) * dtype.itemsize
        lines[name] = {"dtype": kind(dtype), "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(lines, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def entry(name: str, shape: tuple[int, ...], dtype: torch.dtype, digits: int) -> int:
    """At most so many bytes for one tensor's line. digits: of the largest offset."""
    offset = 10**digits - 1
    line = {"dtype": kind(dtype), "shape": list(shape), "data_offsets": [offset, offset]}
    return len(json.dumps({name: line}, separators=(",", ":")).encode()) - 1  # without the braces, with a comma


def frames(data: int) -> int:
    """At most so many bytes around the lines, of all files together that hold `data` bytes of tensors."""
    return FRAME * (1 + data // SHARD)

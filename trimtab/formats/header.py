"""How many bytes a safetensors file takes beside its tensors: a length, and JSON that names every tensor.

    {"__metadata__":{"format":"pt"},"NAME":{"dtype":"F16","shape":[576,9],"data_offsets":[0,10368]},...}

Where in the file a tensor begins is known only when all are; so offsets count with as many digits as the largest can have,
and the answer is a bound: at most a few bytes per tensor above what is written.
"""

import json

import torch

NAMES = {torch.bool: "BOOL", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.bfloat16: "BF16"}
SHARD = 2 * 10**9  # bytes: files are split at 4 GB, and any two neighbours hold more than that together
FRAME = len('{"__metadata__":{"format":"pt"}}') + 8 + 7  # with the length before it and the padding behind it


def entry(name: str, shape: tuple[int, ...], dtype: torch.dtype, digits: int) -> int:
    """At most so many bytes for one tensor's line. digits: of the largest offset."""
    kind = NAMES.get(dtype) or f"{'F' if dtype.is_floating_point else 'U' if dtype is torch.uint8 else 'I'}{8 * dtype.itemsize}"
    offset = 10**digits - 1
    line = {"dtype": kind, "shape": list(shape), "data_offsets": [offset, offset]}
    return len(json.dumps({name: line}, separators=(",", ":")).encode()) - 1  # without the braces, with a comma


def frames(data: int) -> int:
    """At most so many bytes around the lines, of all files together that hold `data` bytes of tensors."""
    return FRAME * (1 + data // SHARD)

"""safetensors files read and written tensor by tensor, without mapping them: room among addresses can be short, too.

What is written is what the safetensors library would write: tensors by dtype, then by name, behind a header of eight-byte length.
"""

import json
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from trimtab.core.errors import ModelError
from trimtab.engine.depot import Stored
from trimtab.formats import header

LARGEST_HEADER = 100 << 20
DTYPES = {
    **{"BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64},
    **{"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64},
    **{
        "F8_E5M2": torch.float8_e5m2,
        "F8_E4M3": torch.float8_e4m3fn,
        "U16": torch.uint16,
        "U32": torch.uint32,
        "U64": torch.uint64,
        "F8_E8M0": torch.float8_e8m0fnu,
    },
}


def places(file: Path) -> dict[str, Stored]:
    """Where the tensors of a file are. Raises `ModelError` for a header that does not cover the file exactly."""
    try:
        size = file.stat().st_size
        with file.open("rb") as data:
            length = int.from_bytes(data.read(8), "little")
            if not 2 <= length <= min(LARGEST_HEADER, size - 8):
                raise ValueError(f"a header of {length} bytes")
            lines = json.loads(data.read(length))
        lines.pop("__metadata__", None)
        found = {name: _place(file, 8 + length, entry) for name, entry in lines.items()}
        spans = sorted(tuple(entry["data_offsets"]) for entry in lines.values())
        ends = [0, *(end for _, end in spans)]
        if [start for start, _ in spans] != ends[:-1] or 8 + length + ends[-1] != size:
            raise ValueError("tensors overlap, or leave room between them")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{file} is damaged or no safetensors file ({error}); fetch or write it again") from error
    return found


def _place(file: Path, begin: int, entry: Mapping[str, object]) -> Stored:
    dtype, shape, offsets = DTYPES[str(entry["dtype"])], entry["shape"], entry["data_offsets"]
    if not isinstance(shape, list) or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise ValueError(f"a shape of {shape!r:.40}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(isinstance(n, int) and n >= 0 for n in offsets):
        raise ValueError(f"offsets of {offsets!r:.40}")
    if offsets[1] - offsets[0] != prod(shape) * dtype.itemsize:
        raise ValueError("a tensor whose size is not its shape's")
    return Stored(file, begin + offsets[0], dtype, tuple(shape))


def write(file: Path, tensors: Mapping[str, Tensor], values: Callable[[str], Tensor]) -> None:
    """A file of these tensors, of which only dtypes and shapes are looked at; `values(name)` gives one when it is its turn."""
    layout = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    with file.open("wb") as out:
        out.write(header.header(layout))
        for name in header.order(layout):
            value = values(name).detach().cpu().contiguous()
            out.write(value.reshape(-1).view(torch.uint8).numpy().data)

"""Checkpoints that transformers wrote with bitsandbytes in 4 bits (NF4 or FP4).

A matrix is read row by row in blocks of `blocksize`; a weight is entry `code` of a table of 16 float32 numbers times the
block's `absmax`. A byte holds two codes, the first in its upper half. With double quantization `absmax` is itself stored in
bytes: entry of a table of 256 times a scale for every `nested_blocksize` of them, plus an offset. The product is rounded to the
dtype that the matrix had, as bitsandbytes does. Neither table nor scales are float16, so the result is a plain matrix.
"""

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from trimtab.core.errors import ModelError
from trimtab.core.kinds import LinearWeight
from trimtab.formats import Dense
from trimtab.formats.checks import DTYPES
from trimtab.host.imports.parts import Shape, expect

KINDS = ("nf4", "fp4")
STATE = "weight.quant_state.bitsandbytes__"
LARGEST = 1 << 16  # bytes of a description
BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)


class BitsAndBytes:
    """described: the `quantization_config`. Raises `ModelError` where it is not of 4 bits."""

    mark = "weight.absmax"
    parts = (
        *("weight", "weight.absmax", "weight.quant_map", "weight.nested_absmax", "weight.nested_quant_map"),
        *(f"{STATE}{kind}" for kind in KINDS),
    )

    def __init__(self, described: Mapping[str, Any]):
        if not (described.get("load_in_4bit") or described.get("_load_in_4bit")):
            raise ModelError("bitsandbytes checkpoints are read in 4 bits (nf4, fp4); this one is not")
        if described.get("bnb_4bit_quant_storage", "uint8") != "uint8":
            storage = f"{described.get('bnb_4bit_quant_storage')!r:.40}"
            raise ModelError(f"bitsandbytes checkpoints are read where codes are stored as uint8, not as {storage}")

    def weight(self, path: str, shape: Shape, found: Mapping[str, Tensor]) -> LinearWeight:
        """Raises ValueError for parts that do not belong together."""
        count = shape[0] * shape[1]
        said = _said(found)
        if said.get("shape") != list(shape):
            raise ValueError(f"its description says {said.get('shape')!r:.40}, the model has {list(shape)}")
        size, dtype = said.get("blocksize"), DTYPES.get(str(said.get("dtype")))
        if size not in BLOCKS or dtype is None or count % 2:
            raise ValueError(f"blocks of {size!r:.40}, dtype {said.get('dtype')!r:.40}")
        blocks = -(-count // size)
        packed = found["weight"].reshape(-1) if "weight" in found else torch.empty(0)
        if packed.dtype != torch.uint8 or len(packed) != count // 2:
            raise ValueError(f"weight is {packed.dtype} with {packed.numel()} numbers, expected uint8 with {count // 2}")
        table = expect(found, "weight.quant_map", (16,), torch.float32)
        scale = _scales(found, said, blocks)
        codes = torch.stack([packed >> 4, packed & 15], 1).view(-1)
        values = table[codes.long()] * scale.repeat_interleave(size)[:count]
        return Dense(values.view(shape).to(dtype))


def _said(found: Mapping[str, Tensor]) -> dict[str, Any]:
    states = [tensor for name, tensor in found.items() if name.startswith(STATE)]
    if len(states) != 1 or states[0].dtype != torch.uint8 or states[0].numel() > LARGEST:
        raise ValueError("it has no description, or one that is too long")
    said = json.loads(bytes(states[0].reshape(-1).tolist()))
    if not isinstance(said, dict):
        raise ValueError("its description is no object")
    return said


def _scales(found: Mapping[str, Tensor], said: Mapping[str, Any], blocks: int) -> Tensor:
    """float32 [blocks]."""
    if "weight.nested_absmax" not in found:
        return expect(found, "weight.absmax", (blocks,), torch.float32)
    size, offset = said.get("nested_blocksize"), said.get("nested_offset")
    if size not in BLOCKS or not isinstance(offset, float):
        raise ValueError(f"blocks of blocks of {size!r:.40}, offset {offset!r:.40}")
    codes = expect(found, "weight.absmax", (blocks,), torch.uint8).long()
    table = expect(found, "weight.nested_quant_map", (256,), torch.float32)
    scale = expect(found, "weight.nested_absmax", (-(-blocks // size),), torch.float32)
    return table[codes] * scale.repeat_interleave(size)[:blocks] + offset

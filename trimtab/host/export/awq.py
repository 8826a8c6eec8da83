"""The layout `gemm` of AutoAWQ, which GPTQModel (and transformers with it) and vLLM read.

Per matrix `qweight` int32 [in, out / 8], `qzeros` int32 [groups, out / 8] and `scales` float16 [groups, out]. A word holds the
4-bit numbers of eight neighbouring outputs, from the lowest bits up those of outputs 0, 2, 4, 6, 1, 3, 5, 7. The weight is
(code - zero) * scale. There are 4 bits and one group size for all; fewer bits fit as they are, more do not.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trimtab.formats import Grouped
from trimtab.host.export import integers
from trimtab.host.export.contents import Contents, Entry, Value, spelled
from trimtab.host.export.holders import exchange
from trimtab.host.export.plain import save, unpack
from trimtab.tensors.words import pack_words

REQUANTIZE = ("float32", "bfloat16", "float16")
BITS = 4
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
FAST = (32, 64, 128)
CALLED = "AWQ"


def plan(contents: Contents, requantize: str | None) -> list[Entry]:
    """Grouped integers of up to 4 bits are exact. Others are refused, or written plain in the dtype of `requantize`."""
    held = _fitting(contents)
    group_size = integers.common_group(held.values())
    return contents.planned(lambda name, value: _entry(name, value, held, group_size, requantize))


def write(contents: Contents, entries: list[Entry], folder: Path) -> None:
    """Changes the model in memory."""
    held = _fitting(contents)
    group_size = integers.common_group(held.values())
    plain = {e.name: getattr(torch, e.becomes) for e in entries if not e.becomes.startswith(CALLED)}
    said = {"quantization_config": description(contents, held)} if held else {}
    exchange(contents.model, {path: tensors(weight, group_size) for path, weight in held.items()})
    unpack(contents, plain, set(plain))
    save(contents, plain.values(), folder, said)


def remarks(contents: Contents, entries: list[Entry]) -> list[str]:
    """What readers ask for beyond the layout."""
    held = _fitting(contents)
    if not held:
        return ["no matrix is in integers, so this is an ordinary folder"]
    group_size = integers.common_group(held.values())
    known = ", ".join(map(str, FAST))
    odd = group_size is not None and group_size not in FAST
    return [f"fast kernels of vLLM and GPTQModel want groups of {known}, these are {group_size}"] if odd else []


def tensors(weight: Grouped, group_size: int | None) -> dict[str, Tensor]:
    """What the layout stores for one matrix."""
    return {
        "qweight": _interleaved(integers.codes(weight, BITS).T),
        "qzeros": _interleaved(integers.zeros(weight, BITS, group_size).T),
        "scales": integers.factors(weight, group_size).T.contiguous(),
    }


def description(contents: Contents, held: Mapping[str, Grouped]) -> dict[str, Any]:
    """`quantization_config`, for the matrices in `held` (path -> integers; at least one)."""
    plain = integers.plain_linears(contents.model, held)
    return {
        "quant_method": "awq",
        "bits": BITS,
        "group_size": integers.common_group(held.values()) or -1,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": plain or None,
    }


def _interleaved(numbers: Tensor) -> Tensor:
    """uint8 [rows, out] -> int32 [rows, out / 8]."""
    ordered = numbers.reshape(len(numbers), -1, len(ORDER))[..., list(ORDER)]
    return pack_words(ordered.reshape(len(numbers), -1), BITS)


def _fitting(contents: Contents) -> dict[str, Grouped]:
    found = integers.candidates(contents, transposed=False)
    return {path: w for path, w in found.items() if w.code_bits <= BITS and not w.shape[0] % len(ORDER)}


def _entry(name: str, value: Value, held: Mapping[str, Grouped], group_size: int | None, requantize: str | None) -> Entry:
    weight = held.get(name.removesuffix(".weight"))
    if weight is None:
        return integers.unfit(name, value, requantize, _why(value))
    size = integers.stored_bytes(tensors(weight, group_size))
    groups = f"groups of {group_size or weight.shape[1]}"
    return Entry(name, weight.shape, spelled(weight), f"{CALLED} {BITS} bits, {groups}", "exact", size)


def _why(value: Value) -> str:
    if isinstance(value, Grouped) and value.code_bits > BITS:
        return f"the layout has {BITS} bits"
    return f"linear layers inside of the blocks, with outputs in multiples of {len(ORDER)}, are where the layout has integers"

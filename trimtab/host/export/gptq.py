"""The layout that GPTQModel, AutoGPTQ before it, and vLLM read for checkpoints of GPTQ.

Per matrix `qweight` int32 [in * bits / 32, out], `qzeros` int32 [groups, out * bits / 32], `scales` float16 [groups, out] and
`g_idx` int32 [in], the group of every input. A column of `qweight` is one little-endian stream of the codes of an output, as
our rows are, also with 3 bits, where a code may lie in two words. The weight is (code - zero) * scale.

The first version of the layout stores zero - 1, so a zero point of 0 has no place in it. Where one occurs, the checkpoint says
`gptq_v2` and stores zero points as they are. Bits that differ between matrices, and matrices that stay plain, are said by
`dynamic`, in expressions that match their paths; there is one group size for all.
"""

import json
import re
from collections import Counter
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
from trimtab.host.provenance import versions
from trimtab.tensors.words import pack_words

REQUANTIZE = ("float32", "bfloat16", "float16")
BITS = (2, 3, 4, 8)
WHOLE = 32  # inputs and outputs that fill words with any number of bits
CALLED = "GPTQ"


def plan(contents: Contents, requantize: str | None) -> list[Entry]:
    """Grouped integers are exact, those of 5 to 7 bits as 8. Others are refused, or written plain in `requantize`."""
    held = _fitting(contents)
    group_size = integers.common_group(held.values())
    return contents.planned(lambda name, value: _entry(name, value, held, group_size, requantize))


def write(contents: Contents, entries: list[Entry], folder: Path) -> None:
    """Changes the model in memory. quantize_config.json says the same as config.json, for readers that look there."""
    held = _fitting(contents)
    group_size = integers.common_group(held.values())
    plain = {e.name: getattr(torch, e.becomes) for e in entries if not e.becomes.startswith(CALLED)}
    said = description(contents, held) if held else None
    first = said is None or said["checkpoint_format"] == "gptq"
    exchange(contents.model, {path: tensors(weight, group_size, first) for path, weight in held.items()})
    unpack(contents, plain, set(plain))
    save(contents, plain.values(), folder, {"quantization_config": said} if said else {})
    if said:
        (folder / "quantize_config.json").write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")


def remarks(contents: Contents, entries: list[Entry]) -> list[str]:
    """What readers ask for beyond the layout."""
    held = _fitting(contents)
    if not held:
        return ["no matrix is in integers, so this is an ordinary folder"]
    said = description(contents, held)
    told = [f"{key} occur, said by `dynamic`, which GPTQModel reads; another reader may not" for key in _uneven(said)]
    if said["checkpoint_format"] == "gptq_v2":
        told.append("zero points of 0 occur, so the layout is gptq_v2, which GPTQModel and vLLM read")
    return told


def tensors(weight: Grouped, group_size: int | None, first: bool = True) -> dict[str, Tensor]:
    """What the layout stores for one matrix. first: in its first version, which has no zero point of 0."""
    bits = bits_of(weight)
    zeros = integers.zeros(weight, bits, group_size)
    return {
        "qweight": pack_words(integers.codes(weight, bits), bits).T.contiguous(),
        "qzeros": pack_words((zeros - int(first)).T.contiguous(), bits),
        "scales": integers.factors(weight, group_size).T.contiguous(),
        "g_idx": torch.arange(weight.shape[1], dtype=torch.int32) // (group_size or weight.group_size),
    }


def bits_of(weight: Grouped) -> int:
    """The fewest bits of the layout that hold the codes."""
    return next(bits for bits in BITS if bits >= weight.code_bits)


def description(contents: Contents, held: Mapping[str, Grouped]) -> dict[str, Any]:
    """`quantization_config`, for the matrices in `held` (path -> integers; at least one)."""
    bits = {path: bits_of(weight) for path, weight in held.items()}
    most = Counter(bits.values()).most_common(1)[0][0]
    dynamic: dict[str, Any] = {f"+:^{re.escape(path)}$": {"bits": own} for path, own in bits.items() if own != most}
    dynamic |= {f"-:^{re.escape(path)}$": {} for path in integers.plain_linears(contents.model, held)}
    from_zero = any(bool((weight.zero == 0).any()) for weight in held.values() if weight.zero is not None)
    return {
        "quant_method": "gptq",
        "bits": most,
        "group_size": integers.common_group(held.values()) or -1,
        "desc_act": False,
        "sym": all(weight.zero is None for weight in held.values()),
        "lm_head": False,
        "true_sequential": True,
        "checkpoint_format": "gptq_v2" if from_zero else "gptq",
        "pack_dtype": "int32",
        "meta": {"quantizer": [f"trimtab:{versions()['trimtab']}"]},
        **({"dynamic": dynamic} if dynamic else {}),
    }


def _uneven(said: Mapping[str, Any]) -> list[str]:
    keys = said.get("dynamic", {})
    found = ["matrices with other bits"] if any(key.startswith("+:") for key in keys) else []
    return found + (["plain matrices"] if any(key.startswith("-:") for key in keys) else [])


def _fitting(contents: Contents) -> dict[str, Grouped]:
    found = integers.candidates(contents, transposed=True)
    return {path: weight for path, weight in found.items() if not any(size % WHOLE for size in weight.shape)}


def _entry(name: str, value: Value, held: Mapping[str, Grouped], group_size: int | None, requantize: str | None) -> Entry:
    weight = held.get(name.removesuffix(".weight"))
    if weight is None:
        why = f"inside of the blocks, with inputs and outputs in multiples of {WHOLE}, is where the layout has integers"
        return integers.unfit(name, value, requantize, why)
    size = integers.stored_bytes(tensors(weight, group_size, first=False))
    groups = f"groups of {group_size or weight.shape[1]}"
    return Entry(name, weight.shape, spelled(weight), f"{CALLED} {bits_of(weight)} bits, {groups}", "exact", size)

"""The checkpoint format "pack-quantized" of compressed-tensors, which transformers opens with that package, and vLLM.

Its integers are ours: a row of codes is one little-endian bit stream, there cut into 32-bit words. Codes are signed there, so
code and zero point both move by 2^(bits - 1), and their difference, the value, does not. Per matrix it stores `weight_packed`
int32 [out, words], `weight_scale` [out, groups], `weight_shape` [2] and, where zero points vary, `weight_zero_point`
int32 [words of out, groups], packed along the outputs.

Scales stay float16 in the file and the config says float32: opened so, (code - zero) * scale is computed as we compute it.
An engine that multiplies in float16 takes the same scales as they are.
"""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.formats import Grouped
from trimtab.host.export.contents import Contents, Entry, Value, spelled
from trimtab.host.export.holders import exchange
from trimtab.host.export.plain import save, unpack, unpacked_entry
from trimtab.tensors.words import as_words, pack_words

REQUANTIZE = ("float32", "bfloat16", "float16")
VLLM_BITS = (4, 8)
VLLM_GROUPS = (32, 64, 128)
FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
Scheme = tuple[int, int | None, bool]  # bits, group size (None: one group a row), symmetric


def plan(contents: Contents, requantize: str | None) -> list[Entry]:
    """Grouped integers are exact. Other packed matrices are refused, or written plain in the dtype of `requantize`."""
    return contents.planned(lambda name, value: _entry(name, value, requantize))


def write(contents: Contents, entries: list[Entry], folder: Path) -> None:
    """Changes the model in memory."""
    packed = [entry.name for entry in entries if entry.becomes.startswith("pack-quantized")]
    plain = {e.name: getattr(torch, e.becomes) for e in entries if e.name not in packed}
    found = {name.removesuffix(".weight"): _grouped(contents.values[name]) for name in packed}
    schemes = {path: _scheme(weight) for path, weight in found.items()}
    exchange(contents.model, {path: tensors(weight) for path, weight in found.items()})
    unpack(contents, plain, set(plain))
    save(contents, [torch.float32], folder, {"quantization_config": description(contents.model, schemes)} if schemes else {})


def remarks(contents: Contents, entries: list[Entry]) -> list[str]:
    """What vLLM asks for beyond the format, where this model does not meet it."""
    found = {e.name.removesuffix(".weight"): contents.values[e.name] for e in entries if e.becomes.startswith("pack-quantized")}
    schemes = {path: _scheme(value) for path, value in found.items() if isinstance(value, Grouped)}
    other = sorted({bits for bits, _, _ in schemes.values()} - set(VLLM_BITS))
    zeros = any(not symmetric for _, _, symmetric in schemes.values())
    said = ["transformers 5.23 does not open packed zero points by itself; vLLM does"] if zeros else []
    said += [f"vLLM opens 4 and 8 bits of this format, not {', '.join(map(str, other))}"] if other else []
    odd = sorted({size for _, size, _ in schemes.values() if size is not None and size not in VLLM_GROUPS})
    said += [f"vLLM's kernels want groups of 32, 64 or 128, or one a row; these are {', '.join(map(str, odd))}"] if odd else []
    mixed = next((path for path in schemes if not _agrees_with_its_fused(path, schemes)), None)
    return said + ([f"vLLM fuses {mixed} with its neighbours, which have other bits or groups, and will refuse"] if mixed else [])


def tensors(weight: Grouped) -> dict[str, Tensor]:
    """What the format stores for one matrix."""
    out, in_ = weight.shape
    made = {
        "weight_packed": as_words(weight.packed),
        "weight_scale": weight.scale,
        "weight_shape": torch.tensor([out, in_]),
    }
    if weight.zero is not None:
        made["weight_zero_point"] = pack_words(weight.zero.T.contiguous(), weight.code_bits).T.contiguous()
    return made


def description(model: nn.Module, schemes: Mapping[str, Scheme]) -> dict[str, Any]:
    """`quantization_config`: one group of matrices for every combination of bits, group size and symmetry."""
    groups: dict[Scheme, list[str]] = defaultdict(list)
    for path, scheme in schemes.items():
        groups[scheme].append(path)
    linear = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    # One group needs no list of names, and a loader that fuses matrices finds its parts more easily without.
    targets = {scheme: ["Linear"] if len(groups) == 1 else paths for scheme, paths in groups.items()}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "ignore": linear,
        "config_groups": {f"group_{n}": _group(scheme, targets[scheme]) for n, scheme in enumerate(groups)},
    }


def _entry(name: str, value: Value, requantize: str | None) -> Entry:
    if isinstance(value, Tensor):
        return Entry(name, tuple(value.shape), spelled(value), spelled(value), "exact", value.nbytes)
    if isinstance(value, Grouped) and not name.rpartition(".")[0].rpartition(".")[2].isdigit():
        size = sum(tensor.nbytes for tensor in tensors(value).values())
        return Entry(name, value.shape, spelled(value), f"pack-quantized {value.code_bits} bits", "exact", size)
    if requantize is not None:
        return unpacked_entry(name, value, getattr(torch, requantize))
    why = "an expert of a stack" if isinstance(value, Grouped) else "not integers with one scale a group"
    return Entry(name, value.shape, spelled(value), "-", "refused", why=why)


def _grouped(value: Value) -> Grouped:
    assert isinstance(value, Grouped), "the plan lets nothing else pass"
    return value


def _scheme(weight: Grouped) -> Scheme:
    whole = weight.group_size == weight.shape[1]
    return weight.code_bits, None if whole else weight.group_size, weight.zero is None


def _group(scheme: Scheme, targets: list[str]) -> dict[str, Any]:
    bits, group_size, symmetric = scheme
    weights = {
        "num_bits": bits,
        "type": "int",
        "symmetric": symmetric,
        "strategy": "channel" if group_size is None else "group",
        "group_size": group_size,
        "dynamic": False,
        "actorder": None,
        "block_structure": None,
        "observer": "minmax",
        "observer_kwargs": {},
    }
    return {"targets": targets, "weights": weights, "input_activations": None, "output_activations": None}


def _agrees_with_its_fused(path: str, schemes: Mapping[str, Scheme]) -> bool:
    parent, _, name = path.rpartition(".")
    beside = next((names for names in FUSED if name in names), (name,))
    return all(schemes.get(f"{parent}.{other}") == schemes[path] for other in beside)

"""A plain model and beside it, as an adapter of the peft library, the low-rank part of its matrices.

What is a sum of something and a product of two thin matrices is split: the product becomes `lora_B @ lora_A` of an adapter with
scaling 1, everything else a matrix of the model in `base`. A product alone gets a base of zeros. So the adapter can be trained
on, or be left away, in any program that reads peft's adapters:

    model = AutoModelForCausalLM.from_pretrained("OUT/base")
    model = PeftModel.from_pretrained(model, "OUT/adapter")
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from trimtab.core.errors import UsageError
from trimtab.core.kinds import LinearWeight
from trimtab.engine.packed_linear import PackedLinear
from trimtab.formats import Chain, Dense, Sum
from trimtab.host.export import plain
from trimtab.host.export.contents import Contents, Entry, Value, dense, keeps, short, spelled, values_of

REQUANTIZE = plain.REQUANTIZE
BASE, ADAPTER = "base", "adapter"


@dataclass(frozen=True, eq=False)
class Split:
    """base + left @ right. left [out, rank], right [rank, in]."""

    base: LinearWeight
    left: Tensor
    right: Tensor

    @property
    def rank(self) -> int:
        return int(self.left.shape[1])


def plan(contents: Contents, requantize: str | None) -> list[Entry]:
    """One entry per tensor. Raises `UsageError` where no matrix has a low-rank part."""
    splits = _splits(contents)
    if not splits:
        raise UsageError("peft: no matrix has a low-rank part to be an adapter; export to plain")
    return contents.planned(lambda name, value: _entry(name, value, splits, contents.model.dtype, requantize))


def write(contents: Contents, entries: list[Entry], folder: Path) -> None:
    """Changes the model in memory."""
    becomes = {entry.name: getattr(torch, entry.becomes.partition(" ")[0]) for entry in entries}
    splits = _splits(contents)
    transposed = _leave_the_base(contents.model, splits)
    left = replace(contents, values=values_of(contents.model))
    plain.unpack(left, becomes)
    plain.save(left, becomes.values(), folder / BASE)
    _write_adapter(splits, transposed, folder / ADAPTER)


def split(weight: LinearWeight) -> Split | None:
    """None where there is no product of two plain matrices in it."""
    parts = weight.parts if isinstance(weight, Sum) else (weight,)
    thin: list[Any] = [part for part in parts if _is_thin(part)]
    if not thin:
        return None
    rest = tuple(part for part in parts if not _is_thin(part))
    left = torch.cat([part.factors[0].weight for part in thin], 1)
    right = torch.cat([part.factors[1].weight for part in thin], 0)
    nothing = Dense(torch.zeros(weight.shape, dtype=left.dtype))
    return Split(Sum(rest) if len(rest) > 1 else rest[0] if rest else nothing, left, right)


def _is_thin(part: Any) -> bool:
    """A product of two plain matrices."""
    return isinstance(part, Chain) and len(part.factors) == 2 and all(isinstance(f, Dense) for f in part.factors)


def _splits(contents: Contents) -> dict[str, Split]:
    """By path, of linear layers; experts in a stack have no place in an adapter."""
    found: dict[str, Split] = {}
    for path, module in contents.model.named_modules():
        value = contents.values.get(f"{path}.weight")
        if isinstance(module, PackedLinear) and not isinstance(value, Tensor) and value is not None:
            made = None if path.rpartition(".")[2].isdigit() else split(value)
            if made is not None:
                found[path] = made
    return found


def _entry(name: str, value: Value, splits: Mapping[str, Split], dtype: torch.dtype, requantize: str | None) -> Entry:
    found = splits.get(name.removesuffix(".weight"))
    if found is None:
        return plain.entry(name, value, dtype, requantize)
    fits = keeps(dense(found.base), dtype)
    made = plain.unpacked_entry(name, found.base, dtype if fits else getattr(torch, requantize or "float32"))
    thin = f"{made.becomes} + rank {found.rank} in {short(found.left.dtype)}"
    return replace(made, stored=spelled(value), becomes=thin, bytes=made.bytes + found.left.nbytes + found.right.nbytes)


def _leave_the_base(model: nn.Module, splits: Mapping[str, Split]) -> bool:
    """Takes the products out of the model. Whether the layers that had them hold their matrices transposed."""
    transposed = set()
    for path, found in splits.items():
        old = model.get_submodule(path)
        assert isinstance(old, PackedLinear), "only packed matrices are split"
        new = PackedLinear.of(found.base, old.bias)
        new.instead_of = old.instead_of
        transposed.add(old.instead_of is not nn.Linear)
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, new)
    if len(transposed) > 1:
        raise UsageError("peft: one adapter cannot serve layers that hold [out, in] and layers that hold [in, out]")
    return transposed.pop()


def _write_adapter(splits: Mapping[str, Split], transposed: bool, folder: Path) -> None:
    folder.mkdir()
    ranks = {path: found.rank for path, found in splits.items()}
    most = max(ranks.values())
    own = {path: rank for path, rank in ranks.items() if rank != most}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": BASE,
        "inference_mode": True,
        "r": most,
        "lora_alpha": most,  # scaling is their quotient
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": transposed,
        "target_modules": sorted(splits),
        "rank_pattern": own,
        "alpha_pattern": own,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tensors: dict[str, Tensor] = {}
    for path, found in splits.items():
        tensors[f"base_model.model.{path}.lora_A.weight"] = found.right.contiguous()
        tensors[f"base_model.model.{path}.lora_B.weight"] = found.left.contiguous()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})

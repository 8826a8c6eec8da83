"""Checkpoints of compressed-tensors with integers: `pack-quantized` (see `host.export.compressed_tensors`), `int-quantized`.

The second holds codes as int8 [out, in] `weight`, with `weight_scale` and maybe int8 `weight_zero_point` [out, groups]. Floating
point codes of 8 or 4 bits are not read. Where activations were to be rounded as well, that is left out: the weights are the same.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from trimtab.core.errors import ModelError
from trimtab.core.kinds import LinearWeight
from trimtab.host.imports.parts import FLOATS, MOST_BITS, Shape, expect, integers, matched, whole
from trimtab.tensors.words import unpack_words, word_count

FORMATS = ("pack-quantized", "int-quantized")
STRATEGIES = ("tensor", "channel", "group")


class CompressedTensors:
    """described: the `quantization_config`. Raises `ModelError` for a format, type or strategy that is not known."""

    mark = "weight_scale"
    parts = ("weight", "weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx")

    def __init__(self, described: Mapping[str, Any]):
        groups = described.get("config_groups")
        if not isinstance(groups, Mapping) or not groups:
            raise ModelError("quantization_config has no config_groups")
        self.schemes = [_scheme(group, described.get("format")) for group in groups.values()]

    def weight(self, path: str, shape: Shape, found: Mapping[str, Tensor]) -> LinearWeight:
        """Raises ValueError for parts that do not belong together."""
        out, in_ = shape
        bits = self._bits(path)
        scale = found["weight_scale"].reshape(-1, 1) if found["weight_scale"].ndim < 2 else found["weight_scale"]
        count = scale.shape[1]
        if not count or in_ % count or len(scale) not in (1, out) or scale.dtype not in FLOATS:
            raise ValueError(f"weight_scale is {scale.dtype} {list(found['weight_scale'].shape)} for {out} x {in_}")
        zero = self._zeros(found, bits, out, count)
        groups = expect(found, "weight_g_idx", (in_,)) if "weight_g_idx" in found else None
        if groups is not None and bool((groups == -1).all()):
            groups = None
        if groups is not None and not 0 <= int(groups.min()) <= int(groups.max()) < count:
            raise ValueError(f"weight_g_idx goes up to {int(groups.max())} of {count} groups")
        codes = self._codes(found, bits, out, in_)
        return integers(codes, scale.expand(out, count).contiguous(), zero, bits, groups)

    def _codes(self, found: Mapping[str, Tensor], bits: int, out: int, in_: int) -> Tensor:
        if "weight_packed" not in found:
            return _raised(expect(found, "weight", (out, in_), torch.int8), bits)
        said = expect(found, "weight_shape", (2,)).tolist()
        if said != [out, in_]:
            raise ValueError(f"weight_shape says {said}, the model has {[out, in_]}")
        return unpack_words(expect(found, "weight_packed", (out, word_count(in_, bits)), torch.int32), bits, in_)

    def _zeros(self, found: Mapping[str, Tensor], bits: int, out: int, count: int) -> Tensor | None:
        """uint8 [out, groups], None where the middle of the range is meant."""
        held = found.get("weight_zero_point")
        if held is None:
            return None
        if held.dtype == torch.int32 and "weight_packed" in found:
            return unpack_words(expect(found, "weight_zero_point", (word_count(out, bits), count)).T, bits, out).T.contiguous()
        flat = held.reshape(-1, 1) if held.ndim < 2 else held
        if held.dtype != torch.int8 or flat.shape[1] != count or len(flat) not in (1, out):
            raise ValueError(f"weight_zero_point is {held.dtype} {list(held.shape)}")
        return _raised(flat, bits).expand(out, count).contiguous()

    def _bits(self, path: str) -> int:
        """Of the first group of matrices that names this one, or all linear layers."""
        for targets, bits in self.schemes:
            if path in targets or "Linear" in targets:
                return bits
        for targets, bits in self.schemes:
            if any(target.startswith("re:") and matched(target[3:]).match(path) for target in targets):
                return bits
        raise ValueError("no group of config_groups names it")


def _scheme(group: Any, common: Any) -> tuple[list[str], int]:
    if not isinstance(group, Mapping) or not isinstance(group.get("weights"), Mapping):
        raise ModelError("quantization_config: a group of config_groups says nothing of weights")
    said = group.get("format") or common
    weights, targets = group["weights"], group.get("targets")
    if said not in FORMATS or weights.get("type", "int") != "int":
        kind = f"{weights.get('type')!r:.20}"
        raise ModelError(
            f"compressed-tensors of the format {said!r:.40} ({kind} numbers) are not read; known are {', '.join(FORMATS)}"
        )
    if weights.get("strategy") not in STRATEGIES:
        raise ModelError(f"compressed-tensors with the strategy {weights.get('strategy')!r:.40} are not read")
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise ModelError("quantization_config: a group of config_groups has no targets")
    return targets, whole(weights, "num_bits", range(2, MOST_BITS + 1))


def _raised(signed: Tensor, bits: int) -> Tensor:
    """int8 -> uint8 from 0 on. Raises ValueError for numbers that have more bits."""
    raised = signed.to(torch.int16) + 2 ** (bits - 1)
    if signed.numel() and not 0 <= int(raised.min()) <= int(raised.max()) < 2**bits:
        raise ValueError(f"numbers from {int(signed.min())} to {int(signed.max())} are not of {bits} bits")
    return raised.to(torch.uint8)

"""Between containers and plain matrices: what an ordinary layer would hold, and what a spec will cost."""

from collections.abc import Mapping
from math import prod
from typing import Any

from torch import Tensor

from trimtab.core.errors import UsageError
from trimtab.formats.dense import Dense
from trimtab.formats.masked import Masked
from trimtab.formats.nm import NM
from trimtab.formats.registry import layout
from trimtab.tensors.masks import Pattern


def plain(weight: Dense | Masked | NM) -> Tensor:
    """[out, in] in the dtype of the stored values, zeros where nothing is stored."""
    if isinstance(weight, Dense):
        return weight.weight
    return weight.dense().to(weight.values.dtype)


def stored_bytes(spec: Mapping[str, Any]) -> int:
    """What a container of this spec takes, before there is one."""
    return sum(prod(shape) * dtype.itemsize for shape, dtype in layout(spec).values())


def stored_bits(spec: Mapping[str, Any]) -> float:
    """Bits per weight that a container of this spec takes, to the byte, before there is one."""
    out, inputs = spec["shape"]
    return 8 * stored_bytes(spec) / float(out * inputs)


def grouped_spec(shape: tuple[int, int], bits: int, group_size: int, symmetric: bool) -> dict[str, Any]:
    """The spec of `Grouped` codes."""
    return {"kind": "grouped", "shape": [*shape], "bits": bits, "group_size": group_size, "symmetric": symmetric}


def low_rank_spec(shape: tuple[int, int], rank: int, dtype: str) -> dict[str, Any]:
    """The spec of `low_rank` factors of this rank. dtype: by name, e.g. "float16"."""
    out, inputs = shape
    parts = [{"kind": Dense.kind, "shape": s, "dtype": dtype} for s in ([out, rank], [rank, inputs])]
    return {"kind": "chain", "shape": [out, inputs], "parts": parts}


def check_pattern(pattern: str, in_features: int, where: str) -> None:
    """N:M groups must tile the inputs. Raises `UsageError` naming the place."""
    m = Pattern.parse(pattern).m
    if m and in_features % m:
        raise UsageError(f"pattern {pattern} needs in % {m} == 0: {where} has in={in_features}; skip it or use another M")

"""What a file claims about a weight is believed only after it has been looked at.

Specs and tensors come from files that anyone may have written. Every reader of them goes through these functions, so that
a damaged or hostile file is one `ModelError` naming the format and the field, and nothing is allocated on its say-so.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from trimtab.core.errors import ModelError, UsageError, did_you_mean
from trimtab.core.kinds import Layout

LARGEST = 2**31  # per dimension: beyond any matrix that exists
DTYPES = {str(d).removeprefix("torch."): d for d in (torch.float64, torch.float32, torch.float16, torch.bfloat16)}


def shown(value: Any) -> str:
    """A short and safe description: hostile values can be megabytes long, or too deep for repr."""
    if isinstance(value, str):
        return repr(value[:40])
    if value is None or isinstance(value, bool | float):
        return repr(value)
    if isinstance(value, int):
        return repr(value) if value.bit_length() <= 64 else f"a number of {value.bit_length()} bits"
    return f"a {type(value).__name__}"


def fields(spec: Mapping[str, Any], kind: str, *names: str) -> None:
    """The spec is a mapping of exactly `kind`, `shape` and these names. Raises `ModelError`."""
    if not isinstance(spec, Mapping):
        raise ModelError(f"{kind}: the spec must be a mapping, got {shown(spec)}")
    known = ("kind", "shape", *names)
    for name in known:
        if name not in spec:
            raise ModelError(f"{kind}: the spec lacks {name!r}")
    for name in spec:
        if name not in known:
            hint = did_you_mean(name[:40], known) if isinstance(name, str) else ""
            raise ModelError(f"{kind}: the spec has an unknown field {shown(name)}{hint}")
    if spec["kind"] != kind:
        raise ModelError(f"{kind}: the spec is of kind {shown(spec['kind'])}")


def whole(value: Any, kind: str, name: str, low: int = 1, high: int = LARGEST) -> int:
    """`value` as a whole number in [low, high]. Raises `ModelError`."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ModelError(f"{kind}: {name} must be a whole number from {low} to {high}, got {shown(value)}")
    return value


def shape(spec: Mapping[str, Any], kind: str) -> tuple[int, int]:
    """[out, in] of a spec. Raises `ModelError`."""
    value = spec.get("shape")
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ModelError(f"{kind}: shape must be [out, in], got {shown(value)}")
    return whole(value[0], kind, "shape[0]"), whole(value[1], kind, "shape[1]")


def flag(value: Any, kind: str, name: str) -> bool:
    """`value` as true or false. Raises `ModelError`."""
    if not isinstance(value, bool):
        raise ModelError(f"{kind}: {name} must be true or false, got {shown(value)}")
    return value


def dtype(value: Any, kind: str) -> torch.dtype:
    """A floating point dtype by its name. Raises `ModelError`."""
    if not isinstance(value, str) or value not in DTYPES:
        raise ModelError(f"{kind}: dtype must be one of {', '.join(DTYPES)}, got {shown(value)}")
    return DTYPES[value]


def dtype_name(dtype: torch.dtype, kind: str) -> str:
    """The name under which a spec stores a dtype. Raises `UsageError` for one that formats do not hold."""
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise UsageError(f"{kind} holds {', '.join(DTYPES)}, got {name}; convert it first")
    return name


def divides(part: int, width: int, kind: str, name: str) -> int:
    """width // part, or `ModelError`."""
    if width % part:
        raise ModelError(f"{kind}: {name} {part} does not divide {width}")
    return width // part


def match(kind: str, layout: Layout, tensors: Mapping[str, Tensor]) -> None:
    """The tensors are those of the layout, by name, shape and dtype. Raises `ModelError`."""
    missing, surplus = sorted(layout.keys() - tensors.keys()), sorted(map(str, tensors.keys() - layout.keys()))
    if missing or surplus:
        what = f"lacks tensor {missing[0]!r}" if missing else f"has a tensor {surplus[0][:40]!r} too many"
        raise ModelError(f"{kind}: {what}; the file is damaged, or from another version")
    for name, (size, kept) in layout.items():
        found = tensors[name]
        if tuple(found.shape) != size or found.dtype != kept:
            raise ModelError(
                f"{kind}: tensor {name!r} is {_words(tuple(found.shape), found.dtype)}, "
                f"its spec says {_words(size, kept)}; the file is damaged"
            )


def finite(kind: str, error: type[UsageError] = UsageError, **named: Tensor | None) -> None:
    """Raises `error` naming the tensor that holds an infinity or NaN."""
    for name, tensor in named.items():
        if tensor is not None and not bool(torch.isfinite(tensor).all()):
            raise error(f"{kind}: {name} is not finite in {str(tensor.dtype).removeprefix('torch.')}")


def expect(kind: str, name: str, tensor: Tensor, size: tuple[int, ...], kept: torch.dtype) -> None:
    """For constructors: the argument has this shape and dtype. Raises `UsageError`."""
    if tuple(tensor.shape) != size or tensor.dtype != kept:
        got = _words(tuple(tensor.shape), tensor.dtype)
        raise UsageError(f"{kind}: {name} must be {_words(size, kept)}, got {got}")


def matrix(kind: str, name: str, tensor: Tensor) -> tuple[int, int]:
    """For constructors: the shape of a two-dimensional, not empty tensor. Raises `UsageError`."""
    if tensor.ndim != 2 or not tensor.numel():
        raise UsageError(f"{kind}: {name} must be [out, in], got {list(tensor.shape)}")
    return int(tensor.shape[0]), int(tensor.shape[1])


def _words(size: tuple[int, ...], dtype: torch.dtype) -> str:
    return f"{str(dtype).removeprefix('torch.')} {list(size)}"

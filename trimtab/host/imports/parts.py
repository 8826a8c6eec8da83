"""What the readers of foreign checkpoints share: tensors by name, shapes that are checked before anything is unpacked."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from torch import Tensor

from trimtab.core.errors import ModelError
from trimtab.core.kinds import LinearWeight
from trimtab.formats import Dense, Grouped
from trimtab.host import folder_checks

Shape = tuple[int, int]
MOST_BITS = 8
FLOATS = (torch.float16, torch.bfloat16, torch.float32)
LONGEST, MOST_REPEATS = 300, 4  # of an expression for paths: characters, repetitions


class Layout(Protocol):
    """How one kind of checkpoint stores a matrix.

    mark: ends the name of a tensor that every packed matrix has. parts: endings of all the tensors that one may have.
    """

    mark: str
    parts: tuple[str, ...]

    def weight(self, path: str, shape: Shape, found: Mapping[str, Tensor]) -> LinearWeight: ...


@dataclass(frozen=True)
class Stored(Mapping[str, Tensor]):
    """Tensors of a folder by name, read when asked for."""

    files: Mapping[str, Path]

    @classmethod
    def of(cls, folder: Path) -> "Stored":
        """Raises `ModelError` for damaged files, and for a tensor that is in two."""
        files = folder_checks.weight_files(folder)
        folder_checks.weights_in(files)
        return cls({name: file for file in files for name in folder_checks.weights_in([file])})

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self.files[name], framework="pt") as held:
            tensor: Tensor = held.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


def expect(found: Mapping[str, Tensor], name: str, shape: tuple[int, ...], *dtypes: torch.dtype) -> Tensor:
    """The part of this name. Raises ValueError if it is not there, of another shape, or of none of the dtypes."""
    if name not in found:
        raise ValueError(f"there is no {name}")
    part = found[name]
    if tuple(part.shape) != shape or (dtypes and part.dtype not in dtypes):
        kinds = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ValueError(f"{name} is {part.dtype} {list(part.shape)}, expected {kinds} {list(shape)}")
    return part


def rows(found: Mapping[str, Tensor], name: str, width: int) -> Tensor:
    """The part of this name, of floats [rows, width], at least one row. Raises ValueError."""
    part = found.get(name, torch.empty(0))
    return expect(found, name, (max(1, len(part)), width), *FLOATS)


def matched(expression: str) -> re.Pattern[str]:
    """An expression for paths that a file holds. Raises `ModelError` where matching it might take forever."""
    repeats = re.findall(r"[*+?{]", expression)
    if len(expression) > LONGEST or len(repeats) > MOST_REPEATS or re.search(r"\)[*+{]", expression):
        raise ModelError(f"quantization_config: {expression!r:.80} might take forever to match; trimtab does not try")
    try:
        return re.compile(expression)
    except re.error as error:
        raise ModelError(f"quantization_config: {expression!r:.80} is no expression for paths: {error}") from error


def whole(described: Mapping[str, Any], key: str, known: tuple[int, ...] | range, default: int | None = None) -> int:
    """A whole number of a `quantization_config`. Raises `ModelError` for one that is not among `known`."""
    value = described.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value not in known:
        said = ", ".join(map(str, known)) if isinstance(known, tuple) else f"{known.start} to {known.stop - 1}"
        raise ModelError(f"quantization_config: {key} is {value!r:.40}; trimtab reads {said}")
    return value


def integers(codes: Tensor, scale: Tensor, zero: Tensor | None, bits: int, groups: Tensor | None = None) -> LinearWeight:
    """(code - zero) * scale as `Grouped` where that holds it, else as float32.

    codes [out, in] and zero [out, groups] from 0 on, below 2**bits and 2**bits + 1; scale [out, groups] of any float dtype;
    groups [in]: the group of every input where they are not neighbours. Raises ValueError for a scale that is not finite.
    """
    if not bool(torch.isfinite(scale.float()).all()):
        raise ValueError("a scale is not finite")
    width = codes.shape[1] // scale.shape[1]
    ordered = groups is None or torch.equal(groups.long(), torch.arange(len(groups)) // width)
    halves = scale.half()
    most = bits if zero is None or int(zero.max()) < 2**bits else bits + 1
    if ordered and torch.equal(halves.to(scale.dtype), scale) and most <= MOST_BITS:
        return Grouped(codes.to(torch.uint8), halves, None if zero is None else zero.to(torch.uint8), most, width)
    return Dense(_unpacked(codes, scale, zero, bits, torch.arange(codes.shape[1]) // width if ordered else groups))


def _unpacked(codes: Tensor, scale: Tensor, zero: Tensor | None, bits: int, groups: Tensor | None) -> Tensor:
    assert groups is not None
    at = groups.long()
    centre = 2.0 ** (bits - 1) if zero is None else zero.float()[:, at]
    return (codes.float() - centre) * scale.float()[:, at]

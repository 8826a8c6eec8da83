"""What a GGUF file says of itself, believed only as far as the file reaches.

A header is data from outside: it counts keys and tensors, gives lengths and places. Here every length is compared with what is
left of the file before anything is read, and all tensors together may not take more than the file has, so nothing that the
header says can make a reader allocate or wait for more than the file is large.
"""

import mmap
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import gguf

from trimtab.core.errors import ModelError

VERSIONS = (2, 3)
MOST_KEYS, MOST_TENSORS, MOST_DIMENSIONS, LONGEST_NAME = 1 << 16, 1 << 20, 4, 1 << 16
STRING, ARRAY = 8, 9
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
ALIGNED = 32


@dataclass(frozen=True)
class Place:
    """Where a tensor lies. shape: as transformers counts, outputs first. offset: from the start of the file."""

    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType
    offset: int
    bytes: int


@dataclass(frozen=True)
class Header:
    """values: every key with a number, text or list; tensors: by llama.cpp's name."""

    values: Mapping[str, Any]
    tensors: Mapping[str, Place]


def read_header(file: Path) -> Header:
    """Raises `ModelError` for what is no GGUF file, of an unknown version, or says more than the file holds."""
    with _mapped(file) as held:
        try:
            return _header(_Cursor(held))
        except (ValueError, struct.error, UnicodeDecodeError) as error:
            raise ModelError(f"{file} is damaged or no GGUF file of a version that is known: {error}") from error


class _Cursor:
    """Reads on from where it stands, and never beyond the end."""

    def __init__(self, held: mmap.mmap):
        self.held, self.at = held, 0

    @property
    def left(self) -> int:
        return len(self.held) - self.at

    def take(self, code: str, count: int = 1) -> tuple[Any, ...]:
        size = struct.calcsize(f"<{code}") * count
        if not 0 <= size <= self.left:
            raise ValueError(f"{count} values at byte {self.at} reach beyond its end")
        found = struct.unpack_from(f"<{count}{code}", self.held, self.at)
        self.at += size
        return found

    def text(self, longest: int | None = None) -> str:
        (length,) = self.take("Q")
        if length > min(self.left, longest or self.left):
            raise ValueError(f"a text of {length} bytes at byte {self.at}")
        found = self.held[self.at : self.at + length]
        self.at += length
        return found.decode("utf-8", "replace")

    def value(self) -> Any:
        (kind,) = self.take("I")
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            return self.take(_number(kind))[0]
        (inner,), (count,) = self.take("I"), self.take("Q")
        if inner != STRING:
            return list(self.take(_number(inner), count))
        if count * 8 > self.left:
            raise ValueError(f"a list of {count} texts at byte {self.at}")
        return [self.text() for _ in range(count)]


def _header(cursor: _Cursor) -> Header:
    if cursor.left < 24 or cursor.held[:4] != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    cursor.at = 4
    (version,), (tensors, keys) = cursor.take("I"), cursor.take("Q", 2)
    if version not in VERSIONS:
        raise ValueError(f"its version is {version}; trimtab reads {' and '.join(map(str, VERSIONS))}")
    if keys > MOST_KEYS or tensors > MOST_TENSORS:
        raise ValueError(f"it counts {keys} keys and {tensors} tensors")
    values = _once(keys, lambda: (cursor.text(LONGEST_NAME), cursor.value()))
    told = _once(tensors, lambda: (cursor.text(LONGEST_NAME), _told(cursor)))
    aligned = values.get("general.alignment", ALIGNED)
    if not isinstance(aligned, int) or not 1 <= aligned <= 1 << 16:
        raise ValueError(f"general.alignment is {aligned!r:.40}")
    start = -(-cursor.at // aligned) * aligned
    places = {name: _place(name, shape, kind, start + offset) for name, (shape, kind, offset) in told.items()}
    _check_room(places, start, len(cursor.held))
    return Header(values, places)


def _once(count: int, read: Callable[[], tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _ in range(count):
        name, value = read()
        if name in found:
            raise ValueError(f"{name[:80]!r} occurs twice")
        found[name] = value
    return found


def _told(cursor: _Cursor) -> tuple[tuple[int, ...], int, int]:
    (dimensions,) = cursor.take("I")
    if not 1 <= dimensions <= MOST_DIMENSIONS:
        raise ValueError(f"a tensor of {dimensions} dimensions")
    shape = cursor.take("Q", dimensions)[::-1]
    (kind,), (offset,) = cursor.take("I"), cursor.take("Q")
    return shape, kind, offset


def _place(name: str, shape: tuple[int, ...], number: int, offset: int) -> Place:
    try:
        kind = gguf.GGMLQuantizationType(number)
    except ValueError as error:
        raise ValueError(f"{name[:80]} is of kind {number}, which this version does not know") from error
    block, size = gguf.GGML_QUANT_SIZES[kind]
    if min(shape) < 1 or shape[-1] % block:
        raise ValueError(f"{name[:80]} is {list(shape)}, in blocks of {block}")
    return Place(shape, kind, offset, prod(shape) // block * size)


def _check_room(places: Mapping[str, Place], start: int, end: int) -> None:
    for name, place in places.items():
        if place.offset + place.bytes > end:
            raise ValueError(f"{name[:80]} reaches to byte {place.offset + place.bytes}, the file has {end}; it is cut off")
    if sum(place.bytes for place in places.values()) > end - start:
        raise ValueError("its tensors lie over one another")


def _number(kind: int) -> str:
    if kind not in NUMBERS:
        raise ValueError(f"a value of type {kind}")
    return NUMBERS[kind]


@contextmanager
def _mapped(file: Path) -> Iterator[mmap.mmap]:
    with file.open("rb") as opened:
        if file.stat().st_size == 0:
            raise ModelError(f"{file} is empty")
        with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as held:
            yield held

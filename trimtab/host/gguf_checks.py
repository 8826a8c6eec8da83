"""What must hold for a GGUF file before another library is given it.

The file is counts and lengths followed by what they count; readers that believed them have read and written outside of their
memory, or taken all of it. So every count is compared with the bytes that are left, every tensor with the end of the file,
and nothing is copied but names: the file is mapped, and its values are stepped over.
"""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import gguf

from trimtab.core.errors import ModelError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MOST_KEYS, MOST_TENSORS = 1 << 16, 1 << 20
LONGEST_NAME, LONGEST_KEY = 1 << 10, 1 << 10
LARGEST = 1 << 40  # of a dimension
MOST_DIMENSIONS = 4
ALIGNMENT, LARGEST_ALIGNMENT = "general.alignment", 1 << 16
DEFAULT_ALIGNMENT = 32
STRING, ARRAY, UINT32 = 8, 9, 4
WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


def check_gguf(file: Path) -> None:
    """Raises `ModelError`, one line that names the file, for anything but a whole and plausible GGUF file."""
    try:
        if not file.is_file():
            raise ModelError(f"there is no file {file}")
        with file.open("rb") as opened:
            if opened.seek(0, 2) < 24:
                raise _Damaged("it is too short")
            with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
                _check(_Reader(data, len(data)))
    except _Damaged as error:
        raise ModelError(f"{file} is damaged or no GGUF file ({error}); fetch or write it again") from error
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror}") from error


class _Damaged(Exception):
    """Why, without the file."""


@dataclass
class _Reader:
    """A place in the file that never goes beyond its end."""

    data: mmap.mmap
    size: int
    at: int = 0

    def skip(self, count: int) -> int:
        """Steps over bytes that have to be there; where they begin."""
        start = self.at
        if count > self.size - start:
            raise _Damaged(f"{count:,} bytes are claimed at {start:,}, where {self.size - start:,} are left")
        self.at += count
        return start

    def number(self, width: int) -> int:
        start = self.skip(width)
        return int.from_bytes(self.data[start : start + width], "little")

    def string(self, longest: int) -> bytes:
        length = self.number(8)
        if length > longest:
            raise _Damaged(f"a name of {length:,} bytes; at most {longest:,}")
        start = self.skip(length)
        return self.data[start : start + length]


def _check(reader: _Reader) -> None:
    if reader.data[reader.skip(4) : 4] != MAGIC:
        raise _Damaged("it does not begin with GGUF")
    version = reader.number(4)
    if version not in VERSIONS:
        raise _Damaged(f"version {version}; versions 2 and 3 are read")
    tensors, keys = _count(reader, "tensors", MOST_TENSORS), _count(reader, "keys", MOST_KEYS)
    alignment = _check_keys(reader, keys)
    described = list(_described(reader, tensors))
    begin = -(-reader.at // alignment) * alignment
    _check_places(described, reader.size - begin, alignment)


def _count(reader: _Reader, what: str, most: int) -> int:
    count = reader.number(8)
    if count > most:
        raise _Damaged(f"{count:,} {what}; at most {most:,}")
    return count


def _check_keys(reader: _Reader, count: int) -> int:
    """Steps over the keys; the alignment that they set."""
    alignment, seen = DEFAULT_ALIGNMENT, set()
    for _ in range(count):
        key = reader.string(LONGEST_KEY)
        if key in seen:
            raise _Damaged(f"the key {_shown(key)} occurs twice")
        seen.add(key)
        kind = reader.number(4)
        if key == ALIGNMENT.encode():
            if kind != UINT32:
                raise _Damaged("its alignment is no whole number of 32 bits")
            alignment = reader.number(4)
            if not 1 <= alignment <= LARGEST_ALIGNMENT or alignment & (alignment - 1):
                raise _Damaged(f"an alignment of {alignment}; it has to be a power of two up to {LARGEST_ALIGNMENT}")
        else:
            _skip_value(reader, kind, key)
    return alignment


def _skip_value(reader: _Reader, kind: int, key: bytes) -> None:
    if kind == STRING:
        reader.skip(reader.number(8))
    elif kind == ARRAY:
        element, length = reader.number(4), reader.number(8)
        if element == STRING:
            # Every string takes at least its length: a count that the file cannot hold ends at once.
            if length > (reader.size - reader.at) // 8:
                raise _Damaged(f"{_shown(key)} has {length:,} strings, for which there is no room")
            for _ in range(length):
                reader.skip(reader.number(8))
        elif element in WIDTHS:
            reader.skip(WIDTHS[element] * length)
        else:
            raise _Damaged(f"{_shown(key)} is a list of values of type {element}")
    elif kind in WIDTHS:
        reader.skip(WIDTHS[kind])
    else:
        raise _Damaged(f"{_shown(key)} is of type {kind}")


def _described(reader: _Reader, count: int) -> Iterator[tuple[bytes, int, int]]:
    """Name, offset and bytes of every tensor."""
    seen = set()
    for _ in range(count):
        name = reader.string(LONGEST_NAME)
        if name in seen:
            raise _Damaged(f"the tensor {_shown(name)} occurs twice")
        seen.add(name)
        dimensions = reader.number(4)
        if not 1 <= dimensions <= MOST_DIMENSIONS:
            raise _Damaged(f"{_shown(name)} has {dimensions} dimensions")
        shape = [reader.number(8) for _ in range(dimensions)]
        if not all(1 <= n <= LARGEST for n in shape):
            raise _Damaged(f"{_shown(name)} is {shape}")
        yield name, *_bytes_of(name, shape, reader.number(4), reader.number(8))


def _bytes_of(name: bytes, shape: list[int], kind: int, offset: int) -> tuple[int, int]:
    try:
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
    except (ValueError, KeyError) as error:
        raise _Damaged(f"{_shown(name)} is stored as type {kind}, which nobody knows") from error
    if shape[0] % block:
        raise _Damaged(f"{_shown(name)} has rows of {shape[0]}, no whole blocks of {block}")
    return offset, prod(shape) // block * size


def _check_places(described: list[tuple[bytes, int, int]], room: int, alignment: int) -> None:
    end = 0
    for name, offset, size in sorted(described, key=lambda entry: entry[1]):
        if offset % alignment or offset < end or offset + size > room:
            raise _Damaged(f"{_shown(name)} overlaps another tensor or lies outside of the file")
        end = offset + size


def _shown(name: bytes) -> str:
    return repr(name[:80].decode("utf-8", "replace"))

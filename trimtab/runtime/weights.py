"""From the tensors of a file and the spec beside them to a weight of the compiled module.

The specs are those that `formats` writes; what they mean is said there. Every field is checked before it is used, and every
tensor against the spec. A format without a kernel (points on pyramids or of a lattice, sums of
signs, rotations, matrix product operators, butterflies) is unpacked once, while the model is opened.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.core.errors import ModelError
from trimtab.runtime.binary import signplanes, signstack
from trimtab.runtime.errors import Unsupported
from trimtab.runtime.folder import LARGEST, Bytes, Stored
from trimtab.runtime.hadamard import base, rotation
from trimtab.runtime.lattice import lattice
from trimtab.runtime.native import native
from trimtab.runtime.structured import butterfly, mpo

MOST_PARTS = 64
MOST_BLOCKS = 4096
DEEPEST = 8
HEAD_GROUP = 64
PLAIN = ("float32", "float16", "bfloat16")
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Weight:
    """A matrix as stored: its place in the model, its spec, and its tensors by the names of its format."""

    path: str
    spec: Mapping[str, Any]
    tensors: Mapping[str, Stored]

    @property
    def kind(self) -> str:
        kind = self.spec.get("kind")
        if not isinstance(kind, str):
            raise ModelError(f"{self.path}: the spec names no kind")
        return kind

    @property
    def shape(self) -> tuple[int, int]:
        value = self.spec.get("shape")
        if not isinstance(value, list | tuple) or len(value) != 2:
            raise ModelError(f"{self.path}: shape must be [out, in], got {value!r:.80}")
        return _whole(self, value[0], "shape"), _whole(self, value[1], "shape")

    def size(self, name: str, low: int = 1, high: int = LARGEST) -> int:
        if name not in self.spec:
            raise ModelError(f"{self.path}: the spec lacks {name!r}")
        return _whole(self, self.spec[name], name, low, high)

    def tensor(self, name: str, dtype: str, *shape: int) -> Stored:
        """The tensor of this name, dtype and shape. Raises `ModelError` if it is another."""
        found = self.tensors.get(name)
        if found is None:
            raise ModelError(f"{self.path}: the file has no tensor {name!r}; fetch or write the model again")
        if found.dtype != dtype or found.shape != shape:
            raise ModelError(
                f"{self.path}: tensor {name!r} is {found.dtype} {list(found.shape)}, its spec says {dtype} {list(shape)}; "
                "the file is damaged"
            )
        return found


def plain(path: str, stored: Stored, transposed: bool = False) -> Weight:
    """An ordinary matrix. transposed: it is stored as [in, out]."""
    if len(stored.shape) != 2 or stored.dtype not in (*PLAIN, "float64"):
        raise ModelError(f"{path} is {stored.dtype} {list(stored.shape)}; a matrix of floating point numbers was expected")
    if transposed:
        stored = _of(stored.dtype, np.ascontiguousarray(stored.array().T))
    return Weight(path, {"kind": "dense", "shape": list(stored.shape), "dtype": stored.dtype}, {"weight": stored})


def take_rows(weight: Weight, rows: Rows) -> Weight:
    """The same weight with these of its outputs, in this order. rows: distinct, at least one."""
    if weight.kind == "block_diagonal":
        weight = _as_masked(weight)
    if weight.kind == "masked":
        return _survivors_of(weight, rows)
    if weight.kind in _WHOLE:
        return take_rows(unpacked(weight), rows)
    spec = {**weight.spec, "shape": [len(rows), weight.shape[1]]}
    if weight.kind in ("sum", "chain", "rotated"):
        parts = [take_rows(p, rows) if i == 0 or weight.kind == "sum" else p for i, p in enumerate(parts_of(weight))]
        own = {name: t for name, t in weight.tensors.items() if name == "signs"}
        named = {f"{i}_{name}": t for i, part in enumerate(parts) for name, t in part.tensors.items()}
        return replace(weight, spec={**spec, "parts": [p.spec for p in parts]}, tensors={**own, **named})
    return replace(weight, spec=spec, tensors={name: _rows_of(name, t, rows) for name, t in weight.tensors.items()})


def linear(weight: Weight, bias: NDArray[np.float32] | None = None) -> Any:
    """The `trimtab_native.Linear`. Raises `ModelError` where spec and tensors disagree, `Unsupported` for an unknown kind."""
    made = _linear(weight, 0)
    return made if bias is None else made.with_bias(bias)


def rounded(weight: Weight, bits: int) -> Any:
    """A plain matrix as bfloat16 (16), or as symmetric codes of 8 or 4 bits in groups of 64 inputs or a part of 64 that fits."""
    data, dtype = _floats(weight)
    out, in_ = weight.shape
    if bits == 16:
        return native().Linear.leaf(_native(weight, native().Matrix.bfloats, data, dtype, out, in_))
    group = next(n for n in range(min(HEAD_GROUP, in_), 0, -1) if in_ % n == 0)
    return native().Linear.leaf(_native(weight, native().Matrix.rounded, data, dtype, out, in_, bits, group))


def parts_of(weight: Weight) -> list[Weight]:
    """The weights that a composition is made of. Raises `ModelError`."""
    specs = weight.spec.get("parts")
    most = 1 if weight.kind == "rotated" else MOST_PARTS
    if not isinstance(specs, list) or not 1 <= len(specs) <= most or not all(isinstance(s, dict) for s in specs):
        raise ModelError(f"{weight.path}: parts must be a list of 1 to {most} specs")
    return [Weight(weight.path, spec, _under(f"{i}_", weight.tensors)) for i, spec in enumerate(specs)]


def product(left: Weight, right: Weight) -> Weight:
    """left @ right, as a chain of the two."""
    parts = [left, right]
    tensors = {f"{i}_{name}": t for i, part in enumerate(parts) for name, t in part.tensors.items()}
    spec = {"kind": "chain", "shape": [left.shape[0], right.shape[1]], "parts": [part.spec for part in parts]}
    return Weight(left.path, spec, tensors)


def unpacked(weight: Weight) -> Weight:
    """The plain matrix that a format without a kernel stands for, in float32."""
    if weight.kind not in _UNPACK:
        raise Unsupported(f"{weight.path}: weights of kind {weight.kind!r:.40} are not covered")
    full = _UNPACK[weight.kind](weight)
    return plain(weight.path, _of("float32", full))


def _linear(weight: Weight, depth: int) -> Any:
    if depth > DEEPEST:
        raise ModelError(f"{weight.path}: the spec is nested deeper than {DEEPEST} levels")
    module = native()
    if weight.kind in ("sum", "chain", "rotated"):
        parts = [_linear(part, depth + 1) for part in parts_of(weight)]
        if weight.kind == "rotated":
            return _rotated(weight, parts[0])
        return _native(weight, module.Linear.sum if weight.kind == "sum" else module.Linear.chain, parts)
    if weight.kind in _LEAVES:
        return module.Linear.leaf(_LEAVES[weight.kind](weight))
    return module.Linear.leaf(_dense(unpacked(weight)))


def _rotated(weight: Weight, inner: Any) -> Any:
    block, signs = weight.size("block"), None
    if weight.shape[1] % block:
        raise ModelError(f"{weight.path}: a block of {block} does not divide {weight.shape[1]} inputs")
    if weight.spec.get("signs"):
        bits = weight.tensor("signs", "uint8", -(-weight.shape[1] // 8))
        signs = 1 - 2 * np.unpackbits(bits.array(), bitorder="little")[: weight.shape[1]].astype(np.float32)
    # Rows are multiplied from the right, so that the compiled code, which multiplies columns, is given the transpose.
    turn = np.ascontiguousarray(base(block).T)
    matrix = None if len(turn) == 1 else turn.reshape(-1)
    return _native(weight, native().Linear.rotated, inner, block, len(turn), matrix, signs)


def _grouped(weight: Weight) -> Any:
    (out, in_), bits, group = weight.shape, weight.size("bits", 2, 8), weight.size("group_size")
    groups = _divided(weight, in_, group)
    codes = weight.tensor("codes", "uint8", out, -(-in_ * bits // 8))
    scale, zero = weight.tensor("scale", "float16", out, groups), None
    if not weight.spec.get("symmetric"):
        zero = weight.tensor("zero", "uint8", out, -(-groups * bits // 8)).data
    return _native(weight, native().Matrix.grouped, codes.data, scale.data, zero, out, in_, bits, group)


def _bitplanes(weight: Weight) -> Any:
    (out, in_), count, group = weight.shape, weight.size("planes", 1, 8), weight.size("group_size")
    groups = _divided(weight, in_, group)
    planes = weight.tensor("planes", "uint8", count, out, -(-in_ // 8))
    scale, offset = weight.tensor("scale", "float16", out, groups, count), weight.tensor("offset", "float16", out, groups)
    return _native(weight, native().Matrix.bitplanes, planes.data, scale.data, offset.data, out, in_, count, group)


def _dense(weight: Weight) -> Any:
    data, dtype = _floats(weight)
    return _native(weight, native().Matrix.dense, data, dtype, *weight.shape)


def _codebook(weight: Weight) -> Any:
    (out, in_), books, entries = weight.shape, weight.size("books", 1, 64), weight.size("entries", 2, 256)
    dim, scale, group = weight.size("dim"), None, in_
    vectors, bits = _divided(weight, in_, dim), (entries - 1).bit_length()
    codes = weight.tensor("codes", "uint8", books, out, -(-vectors * bits // 8))
    book = weight.tensor("codebook", "float16", books, entries, dim)
    if weight.spec.get("group_size") is not None:
        group = weight.size("group_size")
        scale = weight.tensor("scale", "float16", out, _divided(weight, in_, group)).data
    return _native(weight, native().Matrix.codebook, codes.data, book.data, scale, out, in_, books, entries, dim, group)


def _nm(weight: Weight) -> Any:
    (out, in_), m = weight.shape, weight.size("m", 2, 256)
    n, bits = weight.size("n", 1, m - 1), (m - 1).bit_length()
    count = _divided(weight, in_, m) * n
    data, dtype = _numbers(weight, "values", out, count)
    positions = weight.tensor("positions", "uint8", out, -(-count * bits // 8))
    return _native(weight, native().Matrix.some_of, data, positions.data, dtype, out, in_, n, m)


def _masked(weight: Weight) -> Any:
    out, in_ = weight.shape
    data, dtype = _numbers(weight, "values", weight.size("kept", 0, out * in_))
    return _native(weight, native().Matrix.masked, data, _bitmap(weight).data, dtype, out, in_)


def _as_masked(weight: Weight) -> Weight:
    """Blocks along the diagonal as a sparse matrix: its values are theirs, in the order in which they lie."""
    (out, in_), count = weight.shape, weight.size("count", 1, MOST_BLOCKS)
    rows, columns = _divided(weight, out, count), _divided(weight, in_, count)
    blocks = weight.tensor("blocks", str(weight.spec.get("dtype")), count, rows, columns)
    here = np.packbits(np.arange(count)[:, None] == np.arange(in_) // columns, axis=-1, bitorder="little")
    values = Stored(blocks.dtype, (count * rows * columns,), blocks.data)
    spec = {"kind": "masked", "shape": [out, in_], "dtype": blocks.dtype, "kept": count * rows * columns}
    return Weight(weight.path, spec, {"values": values, "bitmap": _of("uint8", here.repeat(rows, axis=0))})


def _block_diagonal(weight: Weight) -> Any:
    return _masked(_as_masked(weight))


_LEAVES: dict[str, Callable[[Weight], Any]] = {
    "grouped": _grouped,
    "bitplanes": _bitplanes,
    "dense": _dense,
    "codebook": _codebook,
    "nm": _nm,
    "masked": _masked,
    "block_diagonal": _block_diagonal,
}


def _bitmap(weight: Weight) -> Stored:
    return weight.tensor("bitmap", "uint8", weight.shape[0], -(-weight.shape[1] // 8))


def _survivors_of(weight: Weight, rows: Rows) -> Weight:
    """`take_rows` where rows have as many values as survive in them."""
    out, in_ = weight.shape
    bitmap, kept = _bitmap(weight).array(), weight.size("kept", 0, out * in_)
    counts = np.unpackbits(bitmap, axis=-1, bitorder="little")[:, :in_].sum(-1, dtype=np.int64)
    if int(counts.sum()) != kept:
        raise ModelError(f"{weight.path}: the bitmap marks {int(counts.sum())} weights, there are {kept}")
    values = weight.tensor("values", str(weight.spec.get("dtype")), kept)
    ends = np.cumsum(counts)
    taken = np.concatenate([values.array()[ends[row] - counts[row] : ends[row]] for row in rows])
    tensors = {"values": _of(values.dtype, taken), "bitmap": _of("uint8", bitmap[rows])}
    return replace(weight, spec={**weight.spec, "shape": [len(rows), in_], "kept": len(taken)}, tensors=tensors)


def _floats(weight: Weight) -> tuple[Bytes, str]:
    return _numbers(weight, "weight", *weight.shape)


def _numbers(weight: Weight, name: str, *shape: int) -> tuple[Bytes, str]:
    """Bytes and dtype of weights as numbers; float32 that holds nothing but bfloat16 numbers becomes bfloat16."""
    dtype = str(weight.spec.get("dtype"))
    if dtype not in (*PLAIN, "float64"):
        raise ModelError(f"{weight.path}: dtype {dtype!r:.40} is not known")
    stored = weight.tensor(name, dtype, *shape)
    data = stored.data if dtype != "float64" else stored.array().astype(np.float32).view(np.uint8).reshape(-1)
    if dtype in ("float32", "float64"):
        halves = data.view("<u2").reshape(-1, 2)
        if not halves[:1024, 0].any() and not halves[:, 0].any():
            return np.ascontiguousarray(halves[:, 1]).view(np.uint8), "bfloat16"
        return data, "float32"
    return data, dtype


def is_wide(weight: Weight) -> bool:
    """Whether a plain matrix takes more than 16 bits per weight."""
    return _floats(weight)[1] == "float32"


def _pyramid(weight: Weight) -> NDArray[np.float32]:
    (out, in_), dim = weight.shape, weight.size("group_size", 1, 256)
    pulses, radius_bits = weight.size("pulses", 1, 1024), weight.size("radius_bits", 1, 8)
    groups, last = _divided(weight, in_, dim), _points(dim, pulses) - 1
    packed = weight.tensor("points", "uint8", out, -(-groups * last.bit_length() // 8)).array()
    index = _whole_numbers(packed, last.bit_length(), groups)
    if int(index.max()) > last:
        raise ModelError(f"{weight.path}: points go up to number {int(index.max())}; there are {last + 1}")
    point = _numbered(index, dim, pulses).astype(np.float32)
    codes = _codes(weight.tensor("codes", "uint8", out, -(-groups * radius_bits // 8)).array(), radius_bits, groups)
    radii, scale = weight.tensor("radii", "float16", 1 << radius_bits).floats(), weight.tensor("scale", "float16", out).floats()
    factor = scale[:, None] * radii[codes] / np.sqrt(np.square(point).sum(-1)).reshape(out, groups)
    full: NDArray[np.float32] = (factor[..., None] * point.reshape(out, groups, dim)).reshape(out, in_)
    return full


def _points(dim: int, pulses: int) -> int:
    """How many vectors of `dim` whole numbers have magnitudes that sum to `pulses`."""
    if not pulses:
        return 1
    return sum(comb(dim, i) * comb(pulses - 1, i - 1) << i for i in range(1, min(dim, pulses) + 1))


def _numbered(index: NDArray[Any], dim: int, pulses: int) -> NDArray[np.int16]:
    """Points [n, dim] by their numbers [n], in the order that `tensors.pyramid` defines."""
    left = np.full(len(index), pulses)
    found = np.empty((len(index), dim), np.int16)
    for i in range(dim):
        count = np.array([_points(dim - 1 - i, k) for k in range(pulses + 1)], index.dtype)
        below = np.concatenate([np.zeros(1, index.dtype), 2 * np.cumsum(count)[:-1]])
        rest = np.minimum(np.searchsorted(below, index, "right") - 1, left)
        index = index - below[rest]
        negative = (rest < left) & (index >= count[rest])
        index = np.where(negative, index - count[rest], index)
        found[:, i] = np.where(negative, rest - left, left - rest)
        left = rest
    return found


def _whole_numbers(packed: NDArray[np.uint8], bits: int, n: int) -> NDArray[Any]:
    """[rows, bytes] of little-endian bit streams -> [rows * n] numbers: uint64, or Python's own where they are longer."""
    stream = np.unpackbits(packed, axis=-1, bitorder="little")[:, : n * bits].reshape(-1, bits)
    if bits > 62:
        return np.array(
            [int.from_bytes(row.tobytes(), "little") for row in np.packbits(stream, axis=-1, bitorder="little")], object
        )
    filled = np.zeros((len(stream), 64), np.uint8)
    filled[:, :bits] = stream
    return np.packbits(filled, axis=-1, bitorder="little").view("<u8")[:, 0]


_UNPACK: dict[str, Callable[[Weight], NDArray[Any]]] = {
    "pyramid": _pyramid,
    "signplanes": signplanes,
    "signstack": signstack,
    "lattice": lattice,
    "rotation": rotation,
    "mpo": mpo,
    "butterfly": butterfly,
}
_WHOLE = ("signplanes", "signstack", "lattice", "rotation", "mpo", "butterfly")  # whose rows are no rows of their tensors


def _codes(packed: NDArray[np.uint8], bits: int, n: int) -> NDArray[np.uint8]:
    """[..., bytes] of little-endian bit streams -> [..., n] codes."""
    stream = np.unpackbits(packed, axis=-1, bitorder="little")[..., : n * bits]
    return np.packbits(stream.reshape(*packed.shape[:-1], n, bits), axis=-1, bitorder="little")[..., 0]


def _rows_of(name: str, stored: Stored, rows: Rows) -> Stored:
    """Of one tensor of a format: outputs are the first axis, but the second of planes and of codes of several books."""
    if name in ("codebook", "radii"):
        return stored
    return _of(stored.dtype, stored.array().take(rows, axis=1 if len(stored.shape) == 3 and name != "scale" else 0))


def _of(dtype: str, array: NDArray[Any]) -> Stored:
    return Stored(dtype, array.shape, np.ascontiguousarray(array).view(np.uint8).reshape(-1))


def _under(prefix: str, tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _whole(weight: Weight, value: Any, name: str, low: int = 1, high: int = LARGEST) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ModelError(f"{weight.path}: {name} must be a whole number from {low} to {high}, got {value!r:.40}")
    return value


def _divided(weight: Weight, width: int, part: int) -> int:
    if width % part:
        raise ModelError(f"{weight.path}: {part} does not divide {width}")
    return width // part


def _native(weight: Weight, make: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return make(*arguments)
    except ValueError as error:
        raise ModelError(f"{weight.path}: {error}") from error

"""The files of a model folder: config.json, and tensors mapped into memory straight from safetensors.

A folder is data from outside. A header is believed only after every offset in it was compared with the file's size and every
shape with its bytes, so nothing is read or allocated that is not there; no file leads out of the folder.
"""

import json
from dataclasses import dataclass
from math import isfinite, prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.core.errors import ModelError

LARGEST_JSON = 1 << 26
LARGEST_HEADER = 32 << 20  # the format allows 100 MB; 32 MB name 200 000 tensors with long names
MOST_VALUES = 1 << 20  # in one JSON file: as many bytes of brackets and commas would be 50 times as many in memory
LARGEST = 1 << 31  # of a dimension
SIZES = {
    **{"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4},
    **{"F16": 2, "BF16": 2, "I16": 2, "U16": 2, "U8": 1, "I8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1},
}
# Of those that are used here.
NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "U8": "uint8", "I8": "int8"}
Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Stored:
    """A tensor as it lies in its file: its bytes, in order."""

    dtype: str
    shape: tuple[int, ...]
    data: Bytes

    def array(self) -> NDArray[Any]:
        """With its shape; bfloat16 as the upper halves of float32, uint16."""
        kinds = {"float64": "<f8", "float32": "<f4", "float16": "<f2", "bfloat16": "<u2", "uint8": "u1", "int8": "i1"}
        return self.data.view(kinds[self.dtype]).reshape(self.shape)

    def floats(self) -> NDArray[np.float32]:
        """A copy in float32: files do not promise that numbers are aligned. Only for floating point tensors."""
        if self.dtype == "bfloat16":
            return (self.array().astype(np.uint32) << 16).view(np.float32)
        return self.array().astype(np.float32)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object without NaN or infinite numbers, at most 64 MB. Raises `ModelError` naming the file."""
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise ValueError(f"larger than {LARGEST_JSON} bytes")
        content = json.loads(_bounded(path.read_bytes()), parse_float=_finite, parse_constant=_finite, object_pairs_hook=_unique)
    except FileNotFoundError as error:
        raise ModelError(f"{path} is missing; that is no complete model folder") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not readable: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} is not readable: not an object")
    return content


def read_config(folder: Path) -> dict[str, Any]:
    """config.json. Raises `ModelError` for a missing folder or a config without a model_type."""
    if not folder.is_dir():
        raise ModelError(f"there is no model folder {folder}")
    config = read_json(folder / "config.json")
    if not isinstance(config.get("model_type"), str):
        raise ModelError(f"{folder / 'config.json'} names no model_type; trimtab opens transformers models")
    return config


def open_tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor of the model, mapped and not yet read. Raises `ModelError` naming file and tensor."""
    found: dict[str, Stored] = {}
    for file in _files(folder):
        for name, stored in _tensors(file).items():
            if name in found:
                raise ModelError(f"{file} holds {name}, which another file of the model holds too")
            found[name] = stored
    return found


def _files(folder: Path) -> list[Path]:
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists():
        return [_inside(folder, single.name)]
    if not index.exists():
        raise ModelError(f"{folder} has no model.safetensors; that is no complete model folder")
    placed = read_json(index).get("weight_map")
    if not isinstance(placed, dict) or not placed or not all(isinstance(name, str) for name in placed.values()):
        raise ModelError(f"{index} has no weight_map")
    return [_inside(folder, name) for name in sorted(set(placed.values()))]


def _inside(folder: Path, name: str) -> Path:
    """A safetensors file of this folder, or of the blobs of its own hub cache."""
    if Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
        raise ModelError(f"{folder}: {name!r:.200} is no safetensors file in this folder")
    home, real = folder.resolve(), (folder / name).resolve()
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else None
    if real.parent not in (home, blobs):
        raise ModelError(f"{folder / name} leads out of the model folder, to {real}; copy the file into the folder")
    if not real.is_file():
        raise ModelError(f"{folder / name} is missing; fetch or write the model again")
    return folder / name


def _tensors(file: Path) -> dict[str, Stored]:
    try:
        whole = np.memmap(file, dtype=np.uint8, mode="r")
    except (OSError, ValueError) as error:
        raise _damaged(file, str(error)) from error
    length = int.from_bytes(whole[:8].tobytes(), "little")
    if len(whole) < 8 or not 2 <= length <= min(LARGEST_HEADER, len(whole) - 8):
        raise _damaged(file, "its header is longer than the file")
    try:
        header = json.loads(_bounded(whole[8 : 8 + length].tobytes()), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _damaged(file, f"its header is not readable: {error}") from error
    if not isinstance(header, dict):
        raise _damaged(file, "its header is no table")
    body = np.asarray(whole)[8 + length :]
    header.pop("__metadata__", None)
    found = {name: _tensor(file, name, entry, body) for name, entry in header.items()}
    _check_covered(file, header, len(body))
    return found


def _check_covered(file: Path, header: dict[str, Any], size: int) -> None:
    """Tensors lie behind each other up to the end, as the format has it: no byte is in two of them, or in none."""
    end = 0
    for name, (begin, after) in sorted(((n, e["data_offsets"]) for n, e in header.items()), key=lambda entry: entry[1]):
        if begin != end:
            raise _damaged(file, f"{name!r:.200} does not begin where the tensor before it ends")
        end = after
    if end != size:
        raise _damaged(file, f"{size - end} bytes at its end belong to no tensor")


def _tensor(file: Path, name: str, entry: Any, body: Bytes) -> Stored:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        sizes = [*shape, begin, end]
    except (TypeError, KeyError, ValueError) as error:
        raise _damaged(file, f"the header's entry for {name!r:.200} is not complete") from error
    if (
        not isinstance(dtype, str)
        or dtype not in SIZES
        or not isinstance(shape, list)
        or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in sizes)
    ):
        raise _damaged(file, f"the header's entry for {name!r:.200} is not readable")
    if len(shape) > 8 or any(n > LARGEST for n in shape) or not begin <= end <= len(body):
        raise _damaged(file, f"{name!r:.200} lies outside of the file")
    if end - begin != prod(shape) * SIZES[dtype]:
        raise _damaged(file, f"{name!r:.200} is {dtype} {shape} in {end - begin} bytes, which do not fit")
    return Stored(NAMES.get(dtype, dtype), tuple(shape), body[begin:end])


def _bounded(data: bytes) -> str:
    """As text, if there are not too many values in it. Raises `ValueError`."""
    if data.count(b",") + data.count(b"[") + data.count(b"{") > MOST_VALUES:
        raise ValueError(f"it has more than {MOST_VALUES} values")
    return data.decode("utf-8")


def _damaged(file: Path, why: str) -> ModelError:
    return ModelError(f"{file} is damaged or no safetensors file ({why}); fetch or write it again")


def _finite(text: str) -> float:
    value = float(text)
    if not isfinite(value):
        raise ValueError(f"the number {text} is not finite")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key occurs twice")
    return made

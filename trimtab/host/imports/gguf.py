"""A GGUF file of llama.cpp becomes a folder of ours: Q4_0, Q5_0 and Q8_0 as they are, everything else unpacked.

Those three are integers with a float16 scale for every 32 inputs and the middle as zero point, so `Grouped` holds them to the
last bit. Q4_1 and Q5_1 have an offset instead; where it is a whole multiple of the scale, as in what `export` writes, they are
`Grouped` with zero points. All other kinds, and embeddings of any kind, become float32 by the `gguf` package.
"""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trimtab.core.errors import ModelError
from trimtab.formats import Grouped
from trimtab.host import folder_checks
from trimtab.host.export.gguf_blocks import BLOCK, decoded
from trimtab.host.export.gguf_families import FAMILIES, row_order
from trimtab.host.imports.folder import Read, built
from trimtab.host.imports.gguf_config import config_of
from trimtab.host.imports.gguf_header import Header, Place, read_header

Kind = gguf.GGMLQuantizationType
PLAIN = {Kind.F32: torch.float32, Kind.F16: torch.float16, Kind.BF16: torch.bfloat16}
BITS = {Kind.Q4_0: 4, Kind.Q5_0: 5, Kind.Q8_0: 8, Kind.Q4_1: 4, Kind.Q5_1: 5}
OFFSET = (Kind.Q4_1, Kind.Q5_1)
Bytes = NDArray[np.uint8]


def read_gguf(file: Path) -> Read:
    """Raises `ModelError` naming the version, architecture, kind or tensor that is not as it should be."""
    header = read_header(file)
    config = config_of(header)
    folder_checks.check_sizes(config, file)
    model = built(config, file)
    held = np.memmap(file, np.uint8, "r")
    found = Read(config)
    for theirs, name in _names(model, header, file).items():
        place = header.tensors[theirs]
        asked = tuple(model.get_parameter(name).shape)
        if place.shape != asked:
            raise ModelError(f"{file}: {theirs} is {list(place.shape)}, its keys ask for {list(asked)}")
        _keep(found, model, name, place, held[place.offset : place.offset + place.bytes])
    found.config["dtype"] = _dtype(found)
    return found


def _keep(found: Read, model: Any, name: str, place: Place, data: Bytes) -> None:
    """Puts one tensor where it belongs, its rows in our order."""
    known = FAMILIES[model.config.model_type]
    order = row_order(name, place.shape[0], model.config, known)
    back = torch.arange(place.shape[0]) if order is None else order.argsort()
    path, _, last = name.rpartition(".")
    linear = last == "weight" and isinstance(model.get_submodule(path), nn.Linear)
    weight = _packed(place, data) if linear else None
    if weight is not None:
        found.weights[path] = weight if order is None else _rows(weight, back)
        return
    values = _plain(name, place, data)[back]
    found.rest[name] = values - 1 if known.one_added and name.endswith("norm.weight") else values


def _names(model: Any, header: Header, file: Path) -> dict[str, str]:
    """Their name -> ours, of every parameter and nothing else."""
    table = gguf.get_tensor_name_map(FAMILIES[model.config.model_type].arch, model.config.num_hidden_layers)
    wanted = {table.get_name(name, try_suffixes=(".weight", ".bias")): name for name, _ in model.named_parameters()}
    for theirs in sorted(map(str, wanted.keys() ^ header.tensors.keys())):
        state = "lacks" if theirs in wanted else "has, without a place in the model,"
        raise ModelError(f"{file} {state} {theirs:.80}")
    return {f"{theirs}": name for theirs, name in wanted.items()}


def _packed(place: Place, data: Bytes) -> Grouped | None:
    """Integers, where the kind has them."""
    if place.kind not in BITS or len(place.shape) != 2:
        return None
    out, in_ = place.shape
    bits = BITS[place.kind]
    blocks = np.array(data).reshape(out, in_ // BLOCK, -1)
    scale = _halves(blocks[..., :2])
    if place.kind is Kind.Q8_0:
        codes = torch.from_numpy(blocks[..., 2:].view(np.int8).astype(np.int16) + 128)
    else:
        codes = torch.from_numpy(_numbers(blocks[..., 4 if place.kind in OFFSET else 2 :], bits == 5))
    zero = _zeros(scale, _halves(blocks[..., 2:4]), bits) if place.kind in OFFSET else None
    if not bool(torch.isfinite(scale).all()) or (place.kind in OFFSET and zero is None):
        return None
    return Grouped(codes.reshape(out, in_).to(torch.uint8), scale, zero, bits, BLOCK)


def _numbers(packed: Bytes, fifth: bool) -> Bytes:
    """uint8 [out, blocks, bytes] -> [out, blocks, 32]: fifth bits as a little-endian word, then pairs (i, i + 16) of the rest."""
    pairs = packed[..., 4:] if fifth else packed
    low = np.concatenate([pairs & 15, pairs >> 4], axis=-1)
    return low | (np.unpackbits(packed[..., :4], axis=-1, bitorder="little") << 4) if fifth else low


def _zeros(scale: Tensor, offset: Tensor, bits: int) -> Tensor | None:
    """uint8 [out, groups], where every offset is -zero * scale exactly; else None."""
    zero = torch.where(scale == 0, 0.0, (-offset.float() / scale.float()).round())
    fits = bool(((zero >= 0) & (zero < 2**bits)).all())
    return zero.to(torch.uint8) if fits and torch.equal(-zero * scale.float(), offset.float()) else None


def _halves(raw: Bytes) -> Tensor:
    """uint8 [out, blocks, 2] -> float16 [out, blocks]."""
    return torch.from_numpy(np.ascontiguousarray(raw).view("<f2")[..., 0].astype(np.float16))


def _plain(name: str, place: Place, data: Bytes) -> Tensor:
    if place.kind in PLAIN:
        return torch.from_numpy(np.array(data)).view(PLAIN[place.kind]).view(place.shape)
    try:
        return decoded(np.array(data).reshape(*place.shape[:-1], -1), place.kind)
    except NotImplementedError as error:
        raise ModelError(f"{name} is of kind {place.kind.name}, which the gguf package does not unpack") from error


def _rows(weight: Grouped, order: Tensor) -> Grouped:
    zero = weight.zero
    return Grouped(weight.codes[order], weight.scale[order], None if zero is None else zero[order], weight.code_bits, BLOCK)


def _dtype(found: Read) -> str:
    """That of the plain matrices, which is the model's where they are of one kind; `write_folder` looks whether it holds all."""
    matrices = {tensor.dtype for tensor in found.rest.values() if tensor.ndim == 2}
    one = matrices.pop() if len(matrices) == 1 else torch.float32
    return str(one).removeprefix("torch.")

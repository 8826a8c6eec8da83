"""One GGUF file that llama.cpp opens: `model.gguf`, with the tokenizer inside.

Matrices of integers become block formats that hold the same values (`gguf_blocks`); plain ones keep 16 bits where they fit,
or the block format that they came from, else float32. Every tensor that is called exact has been read back and compared.
What no format holds is refused, or rounded to the format that `requantize` names.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trimtab.core.errors import ModelError, TrimtabError, UsageError
from trimtab.formats import Dense, Grouped
from trimtab.host.export import reopen
from trimtab.host.export.contents import Contents, Entry, Value, change, dense, keeps, spelled
from trimtab.host.export.gguf_blocks import BLOCK, PLAIN, Kind, Steps, block, decoded, encoded, grid_of, stored_bytes
from trimtab.host.export.gguf_families import Family, add_sizes, context, family, row_order
from trimtab.host.export.gguf_layers import by_layer
from trimtab.host.export.gguf_vocabulary import add_vocabulary, check_vocabulary

FILE = "model.gguf"
REQUANTIZE = ("f32", "bf16", "f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "q4_k")
SIXTEEN = (torch.bfloat16, torch.float16)
PACKED_BITS = 16  # a matrix that took fewer is not blown up to float32 unasked


def plan(contents: Contents, requantize: str | None) -> list[Entry]:
    """One entry per tensor. Raises `ModelError` for a family, feature or tokenizer that the format has no name for."""
    known = family(contents.config)
    check_vocabulary(contents.tokenizer, contents.config.vocab_size)
    _names(contents, known)
    wanted = Kind[requantize.upper()] if requantize else None
    return contents.planned(lambda name, value: _entry(name, _prepared(name, value, known), wanted, value))


def write(contents: Contents, entries: list[Entry], folder: Path) -> None:
    """Raises `TrimtabError` if an exact tensor, read back from what will be written, is not the same."""
    known = family(contents.config)
    names = _names(contents, known)
    writer = gguf.GGUFWriter(folder / FILE, gguf.MODEL_ARCH_NAMES[known.arch])
    try:
        writer.add_name(Path(contents.model.config.name_or_path or contents.config.model_type).name)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        writer.add_file_type(_file_type(entries))
        add_sizes(writer, contents.config, known)
        add_vocabulary(writer, contents.tokenizer, contents.config.vocab_size)
        for entry in entries:
            value = _prepared(entry.name, contents.values[entry.name], known)
            order = row_order(entry.name, entry.shape[0], contents.config, known)
            kind = Kind[entry.becomes]
            stored = _checked(entry, value, order, kind)
            writer.add_tensor(names[entry.name], stored, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def remarks(contents: Contents, entries: list[Entry]) -> list[str]:
    """Where the file says less than the model."""
    said = []
    if by_layer(contents.config):
        said.append("layers differ in width: written for llama.cpp's graph deci, which is not read by transformers")
    window = context(contents.config)
    if window < contents.config.max_position_embeddings:
        said.append(f"the graph has no sliding window: the context is {window} tokens, up to which it says the same")
    return said


def reading(contents: Contents) -> dict[str, Any]:
    """What a reader needs to know that cannot take it from the file: nothing where transformers reads the family from GGUF."""
    known = family(contents.config)
    if by_layer(contents.config) and reopen.llama_python() is None:
        raise UsageError("layers of different widths open in llama.cpp only; install llama-cpp-python, or export to padded")
    if known.stock or by_layer(contents.config):
        return {}
    names = _names(contents, known)
    orders = {name: row_order(name, len(dense(value)), contents.config, known) for name, value in contents.values.items()}
    return {
        "config": contents.config.to_dict(),
        "names": {f"{theirs}": name for name, theirs in names.items()},
        "rows": {name: order.tolist() for name, order in orders.items() if order is not None},
        "one_added": [name for name, value in contents.values.items() if _prepared(name, value, known) is not value],
    }


def _names(contents: Contents, known: Family) -> Mapping[str, str]:
    """Our name -> theirs. Raises `ModelError` for a tensor that the graph has no place for."""
    table = gguf.get_tensor_name_map(known.arch, contents.config.num_hidden_layers)
    found = {name: table.get_name(name, try_suffixes=(".weight", ".bias")) for name in contents.values}
    for name, theirs in found.items():
        if theirs is None:
            raise ModelError(f"gguf: llama.cpp's {gguf.MODEL_ARCH_NAMES[known.arch]} has no place for {name}")
    return {name: theirs for name, theirs in found.items() if theirs is not None}


def _prepared(name: str, value: Value, known: Family) -> Value:
    """With what the family stores differently."""
    if known.one_added and isinstance(value, Tensor) and name.endswith("norm.weight"):
        return value.float() + 1
    return value


def _entry(name: str, value: Value, wanted: "gguf.GGMLQuantizationType | None", held: Value) -> Entry:
    values = dense(value)
    shape = tuple(values.shape)
    kind = _kind(value, values)
    if kind is not None:
        return Entry(name, shape, spelled(held), kind.name, "exact", stored_bytes(kind, shape))
    if wanted is None:
        return Entry(name, shape, spelled(held), "-", "refused", why=_why(value))
    if shape[1] % (whole := block(wanted)):
        return Entry(name, shape, spelled(held), "-", "refused", why=f"{shape[1]} inputs are no whole blocks of {whole}")
    after = decoded(encoded(values, wanted), wanted)
    error = change(values, after)
    verdict = "re-quantized" if error else "exact"
    return Entry(name, shape, spelled(held), wanted.name, verdict, stored_bytes(wanted, shape), error=error or None)  # type: ignore[arg-type]


def _kind(value: Value, values: Tensor) -> "gguf.GGMLQuantizationType | None":
    """The smallest format that holds the values as they are, None if there is none short of float32."""
    if values.ndim == 1:
        return Kind.F32
    if isinstance(value, Grouped):
        steps = Steps.of(value)
        return steps.kind() if steps else None
    grid = grid_of(values) if values.dtype == torch.float32 else None
    if grid is not None:
        return grid
    fits = next((dtype for dtype in SIXTEEN if keeps(values, dtype)), None)
    if fits is not None:
        return PLAIN[fits]
    return Kind.F32 if isinstance(value, Tensor | Dense) or value.bits >= PACKED_BITS else None


def _why(value: Value) -> str:
    if not isinstance(value, Grouped):
        return "not integers with one scale a group"
    if value.group_size % BLOCK:
        return f"groups are not whole blocks of {BLOCK}"
    return "code - zero exceeds 8 bits"


def _checked(entry: Entry, value: Value, order: Tensor | None, kind: "gguf.GGMLQuantizationType") -> "NDArray[np.generic]":
    """What is written, after it was read back."""
    values = dense(value).float()
    values = values if order is None else values[order]
    steps = Steps.of(value) if isinstance(value, Grouped) else None
    if steps is not None and entry.verdict == "exact" and kind not in PLAIN.values():
        stored: NDArray[np.generic] = steps.rows(order).encoded(kind)
    else:
        stored = encoded(values, kind)
    if entry.verdict == "exact" and not torch.equal(decoded(stored, kind), values):
        raise TrimtabError(f"{entry.name} read back from {kind.name} is not what it was; nothing was published")
    return stored


def _file_type(entries: list[Entry]) -> Any:
    """The format that holds most of the weights, as a hint for people."""
    sizes: Counter[str] = Counter()
    for entry in entries:
        sizes[entry.becomes] += int(np.prod(entry.shape))
    most = sizes.most_common(1)[0][0]
    types = gguf.LlamaFileType
    return {"F32": types.ALL_F32}.get(most) or getattr(types, f"MOSTLY_{most}", types.GUESSED)

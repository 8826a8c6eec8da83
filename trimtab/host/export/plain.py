"""An ordinary folder of transformers: every matrix unpacked, every value kept.

A matrix stays in the dtype of the model where its values fit, else it is written in float32, which holds everything that a
format of ours unpacks to. `requantize` names the dtype that such a matrix may be rounded to instead.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.engine import surgery
from trimtab.engine.packed_linear import PackedLinear, PackedStack
from trimtab.formats import Dense
from trimtab.host.export.contents import Contents, Entry, Value, change, dense, keeps, short, spelled

REQUANTIZE = ("bfloat16", "float16")


def plan(contents: Contents, requantize: str | None) -> list[Entry]:
    """One entry per tensor; nothing is ever refused."""
    return contents.planned(lambda name, value: entry(name, value, contents.model.dtype, requantize))


def write(contents: Contents, entries: list[Entry], folder: Path) -> None:
    """The model, its config and tokenizer. Changes the model in memory."""
    becomes = {one.name: getattr(torch, one.becomes) for one in entries}
    unpack(contents, becomes)
    save(contents, becomes.values(), folder)


def unpack(contents: Contents, becomes: Mapping[str, torch.dtype], only: set[str] | None = None) -> None:
    """Puts plain matrices where packed ones are, each in its dtype. only: names of those; None: all of them."""
    model = contents.model
    kept_dtypes = {name: value.dtype for name, value in contents.values.items() if isinstance(value, Tensor)}
    if torch.float32 in becomes.values():
        model.float()  # for a while: what is put in takes the dtype of the model
    for path, module in list(model.named_modules()):
        if isinstance(module, PackedStack):
            _unpack_stack(model, path, module)
        elif isinstance(module, PackedLinear) and (only is None or f"{path}.weight" in only):
            transposed = module.instead_of is not nn.Linear
            surgery.place(model, path, Dense(module.weight_value.dense()), module.bias, transposed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.data = parameter.data.to(becomes.get(name, kept_dtypes.get(name, parameter.dtype)))


def save(contents: Contents, dtypes: Any, folder: Path, said: Mapping[str, Any] | None = None) -> None:
    """What transformers writes, with the dtype that holds every tensor in config.json. said: further keys of that file."""
    model = contents.model
    model.config = contents.config
    model.save_pretrained(folder)
    if contents.tokenizer is not None:
        contents.tokenizer.save_pretrained(folder)
    path = folder / "config.json"
    written = json.loads(path.read_text(encoding="utf-8"))
    widest = torch.float32 if torch.float32 in set(dtypes) else model.dtype
    written |= {"dtype": short(widest), **(said or {})}
    path.write_text(json.dumps(written, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def unpacked_entry(name: str, value: Value, dtype: torch.dtype) -> Entry:
    """The entry of a packed matrix that is written as plain numbers of this dtype."""
    values = dense(value)
    shape, size = tuple(values.shape), values.numel() * dtype.itemsize
    if keeps(values, dtype):
        return Entry(name, shape, spelled(value), short(dtype), "exact", size)
    return Entry(name, shape, spelled(value), short(dtype), "re-quantized", size, error=change(values, values.to(dtype)))


def entry(name: str, value: Value, dtype: torch.dtype, requantize: str | None) -> Entry:
    """In the dtype of the model where the values fit, else in float32 or what was asked for."""
    if isinstance(value, Tensor):
        return Entry(name, tuple(value.shape), spelled(value), short(value.dtype), "exact", value.nbytes)
    if keeps(dense(value), dtype):
        return unpacked_entry(name, value, dtype)
    return unpacked_entry(name, value, getattr(torch, requantize or "float32"))


def _unpack_stack(model: nn.Module, path: str, stack: PackedStack) -> None:
    """A stack whose experts are all plain is one tensor again."""
    for index, weight in enumerate(stack.weight_values):
        surgery.place(model, path, Dense(weight.dense()), None, stack.transposed, index)

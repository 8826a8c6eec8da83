"""What a model holds, tensor by tensor under the names of a plain checkpoint, and what becomes of each in another format.

An export is planned before anything is written: every tensor has one entry that says how it is stored here, how there, and
whether a value changes on the way. What cannot be held without changing values is refused, unless the caller named the
format that it may be rounded to.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trimtab.core.errors import UsageError
from trimtab.core.kinds import LinearWeight
from trimtab.engine.packed_linear import PackedLinear, PackedStack
from trimtab.formats import Dense, Grouped
from trimtab.formats.activations import rounds_inputs

Verdict = Literal["exact", "re-quantized", "refused"]
Value = LinearWeight | Tensor
NAMED = 3  # tensors that a refusal names


@dataclass(frozen=True)
class Entry:
    """One tensor. stored, becomes: its format here and there. bytes: there; 0 if refused. why: of a refusal.

    error: root mean square of the change over that of the values, of what was re-quantized.
    """

    name: str
    shape: tuple[int, ...]
    stored: str
    becomes: str
    verdict: Verdict
    bytes: int = 0
    why: str = ""
    error: float | None = None


def at_once(name: str, make: Callable[[], Entry]) -> Entry:
    return make()


@dataclass(frozen=True, eq=False)
class Contents:
    """A model that is about to be exported. values: by the name that a plain checkpoint would use, each tensor once.

    config: of transformers, without anything of ours; it describes the shapes that are there. notes: what was done to the
    model for the format's sake. keep: makes the entry of a tensor, unless it is known from an export that was stopped.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    config: Any
    values: Mapping[str, Value] = field(repr=False)
    notes: tuple[str, ...] = ()
    keep: Callable[[str, Callable[[], Entry]], Entry] = at_once

    def planned(self, one: Callable[[str, Value], Entry]) -> list[Entry]:
        """An entry for every tensor."""
        return [self.keep(name, partial(one, name, value)) for name, value in self.values.items()]


def forget_quantizer(model: PreTrainedModel) -> None:
    """Lets go of what transformers remembers about how a model was opened: it refuses to cast and to save for its sake."""
    for name in ("hf_quantizer", "quantization_method", "is_quantized"):
        if hasattr(model, name):
            delattr(model, name)


def values_of(model: nn.Module) -> dict[str, Value]:
    """Name -> packed weight, or tensor, in the order of the model. Shared tensors appear once, under their first name.

    Raises `UsageError` for a matrix that rounds its inputs: a file of matrices would be another model.
    """
    packed = {path: m for path, m in model.named_modules() if isinstance(m, PackedLinear)}
    if rounding := next((path for path, m in packed.items() if rounds_inputs(m.spec)), None):
        raise UsageError(f"{rounding} rounds its inputs, which no other format says; export the model before act_quant")
    stacks = [path for path, m in model.named_modules() if isinstance(m, PackedStack)]
    found: dict[str, Value] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        path = name.rpartition(".")[0]
        if path in packed and not name.endswith(".bias"):
            # A matrix among packed experts may be dense; its one buffer is called weight already.
            found[f"{path}.weight"] = packed[path].weight_value
        elif id(tensor) not in seen and path not in stacks:
            seen.add(id(tensor))
            found[name] = tensor.detach()
    return found


def spelled(value: Value) -> str:
    """How a value is stored, in a few words."""
    if isinstance(value, Grouped):
        zeros = "" if value.zero is None else ", zero points"
        return f"{value.code_bits} bits, groups of {value.group_size}{zeros}"
    if isinstance(value, Tensor | Dense):
        held = value if isinstance(value, Tensor) else value.weight
        return short(held.dtype)
    return f"{value.kind}, {value.bits:.2f} bits"


def short(dtype: torch.dtype) -> str:
    """torch.float32 -> 'float32'."""
    return str(dtype).removeprefix("torch.")


def dense(value: Value) -> Tensor:
    """Its values: float32 for what is packed, else as they are."""
    if isinstance(value, Tensor):
        return value
    return value.weight if isinstance(value, Dense) else value.dense()


def keeps(values: Tensor, dtype: torch.dtype) -> bool:
    """Whether every value survives in `dtype`."""
    return torch.equal(values.to(dtype).to(values.dtype), values)


def change(before: Tensor, after: Tensor) -> float:
    """Root mean square of the change over that of the values."""
    before = before.double()
    return float((after.double() - before).norm() / before.norm().clamp_min(torch.finfo(torch.float64).tiny))


def check_refused(target: str, entries: list[Entry], known: tuple[str, ...]) -> None:
    """Raises `UsageError` that names what the target cannot hold, why, and what may be done."""
    refused = [entry for entry in entries if entry.verdict == "refused"]
    if not refused:
        return
    first, more = refused[:NAMED], len(refused) - NAMED
    names = ", ".join(f"{entry.name} ({entry.stored}: {entry.why})" for entry in first)
    others = f" and {more} more" if more > 0 else ""
    asked = f"; allow rounding with --requantize {'|'.join(known)}" if known else ""
    raise UsageError(f"{target} cannot hold {names}{others}{asked}")


def summary(entries: list[Entry]) -> list[tuple[Entry, int]]:
    """Entries that differ in the number of their block only become one, with how many they are; bytes and errors are joined."""
    groups: dict[tuple[str, ...], list[Entry]] = {}
    for entry in entries:
        key = (re.sub(r"\.\d+\.", ".*.", entry.name), entry.stored, entry.becomes, entry.verdict, entry.why)
        groups.setdefault(key, []).append(entry)
    return [(_joined(key[0], group), len(group)) for key, group in groups.items()]


def _joined(name: str, group: list[Entry]) -> Entry:
    first = group[0]
    errors = [entry.error for entry in group if entry.error is not None]
    shape = first.shape if all(entry.shape == first.shape for entry in group) else ()
    total = sum(entry.bytes for entry in group)
    error = max(errors) if errors else None
    return Entry(name, shape, first.stored, first.becomes, first.verdict, total, first.why, error)

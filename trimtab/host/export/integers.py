"""Integers with group scales, brought to the bits and groups that a layout has, without changing a value.

The layouts of GPTQ and AWQ have one group size for the whole model: the greatest that divides every group of it, with scales
and zero points repeated. More bits than needed are allowed as well: codes and zero points just stay as they are.
"""

from collections.abc import Collection, Mapping
from math import gcd
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.engine.packed_linear import PackedLinear
from trimtab.formats import Grouped
from trimtab.host.export.contents import Contents, Entry, Value, spelled
from trimtab.host.export.plain import unpacked_entry


def candidates(contents: Contents, transposed: bool) -> dict[str, Grouped]:
    """Path -> integers, of the linear layers inside of the blocks. transposed: whether layers that hold [in, out] count."""
    head = contents.model.get_output_embeddings()
    found: dict[str, Grouped] = {}
    for path, module in contents.model.named_modules():
        value = contents.values.get(f"{path}.weight")
        known = isinstance(module, PackedLinear) and module is not head and not path.rpartition(".")[2].isdigit()
        if known and isinstance(value, Grouped) and (transposed or module.instead_of is nn.Linear):
            found[path] = value
    return found


def unfit(name: str, value: Value, requantize: str | None, why: str) -> Entry:
    """The entry of what a layout of integers does not hold: plain if it is, or if that was asked for; else refused."""
    if isinstance(value, Tensor):
        return Entry(name, tuple(value.shape), spelled(value), spelled(value), "exact", value.nbytes)
    if requantize is not None:
        return unpacked_entry(name, value, getattr(torch, requantize))
    said = why if isinstance(value, Grouped) else "not integers with one scale a group"
    return Entry(name, value.shape, spelled(value), "-", "refused", why=said)


def common_group(weights: Collection[Grouped]) -> int | None:
    """The greatest group size that divides the groups of all of them; None where every row is one group."""
    if all(weight.group_size == weight.shape[1] for weight in weights):
        return None
    return gcd(*(weight.group_size for weight in weights))


def zeros(weight: Grouped, bits: int, group_size: int | None) -> Tensor:
    """uint8 [out, groups], for codes as `codes` gives them. group_size: divides that of the weight; None: as it is."""
    zero = weight.zero
    middle = torch.full_like(weight.scale, 2.0 ** (bits - 1)).to(torch.uint8)
    return (middle if zero is None else zero).repeat_interleave(_times(weight, group_size), 1)


def codes(weight: Grouped, bits: int) -> Tensor:
    """uint8 [out, in] with the same distance to `zeros`; symmetric codes move with the middle of the range."""
    shift = 0 if weight.zero is not None else 2 ** (bits - 1) - 2 ** (weight.code_bits - 1)
    return weight.codes + shift


def factors(weight: Grouped, group_size: int | None) -> Tensor:
    """float16 [out, groups]."""
    return weight.scale.repeat_interleave(_times(weight, group_size), 1)


def _times(weight: Grouped, group_size: int | None) -> int:
    return weight.group_size // (group_size or weight.group_size)


def stored_bytes(held: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in held.values())


def plain_linears(model: nn.Module, packed: Collection[str]) -> list[str]:
    """Paths of the linear layers that a reader would expect integers in, and that have none. The head is not asked for."""
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    kinds = (nn.Linear, PackedLinear)
    return [p for p, m in model.named_modules() if isinstance(m, kinds) and m is not head and p not in packed]

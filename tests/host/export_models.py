"""Tiny models with packed matrices of every kind, as folders, and what an export of them is made from."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from trimtab.core.kinds import LinearWeight
from trimtab.core.seeds import Seeds
from trimtab.engine import surgery
from trimtab.formats import Grouped, Sum
from trimtab.formats.lowrank import low_rank
from trimtab.host.checkpoint import save
from trimtab.host.export.contents import Contents, values_of
from trimtab.host.export.stock import stock_config
from trimtab.testing.folders import byte_tokenizer
from trimtab.testing.tiny import tiny

Make = Callable[[Tensor, torch.Generator], LinearWeight]


def grouped(bits: int, group_size: int, symmetric: bool) -> Make:
    """Every code and every zero point occurs, and the scales are of either sign."""

    def make(weight: Tensor, generator: torch.Generator) -> Grouped:
        out, in_ = weight.shape
        codes = torch.randint(2**bits, (out, in_), generator=generator).to(torch.uint8)
        zero = torch.randint(2**bits, (out, in_ // group_size), generator=generator).to(torch.uint8)
        scale = torch.randn(out, in_ // group_size, generator=generator) / (8 * 2 ** (bits - 1))
        return Grouped(codes, scale.half(), None if symmetric else zero, bits, group_size)

    return make


def summed(weight: Tensor, generator: torch.Generator) -> Sum:
    """Integers plus low rank."""
    left, right = (torch.randn(n, 2, generator=generator) / 8 for n in weight.shape)
    return Sum((grouped(4, 32, True)(weight, generator), low_rank(left, right.T.contiguous())))


def packed_model(make: Callable[[str], Make | None], family: str = "llama", **overrides: object) -> nn.Module:
    """make: of a module's path, what its matrix becomes; None leaves it."""
    model = tiny(family, **{"vocab_size": 264, "num_hidden_layers": 2, **overrides})
    for path, module in list(model.named_modules()):
        made = make(path) if isinstance(module, nn.Linear) and path != "lm_head" else None
        if made is not None:
            surgery.place(model, path, made(module.weight.detach(), Seeds(0).at(path)), module.bias)
    return model


def packed_folder(folder: Path, make: Callable[[str], Make | None], family: str = "llama", **overrides: object) -> Path:
    return save(packed_model(make, family, **overrides), byte_tokenizer(), folder)


def contents_of(model: nn.Module) -> Contents:
    return Contents(model, byte_tokenizer(), stock_config(model), values_of(model))

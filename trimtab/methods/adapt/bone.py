"""Bone: every r x r block of a matrix is changed by a small matrix that all blocks of its row share, guided by the block itself.

W is cut into blocks W[o, i] of r x r; the change of each is W[o, i] B[o] + B[o], with B [out / r, r, r] zero at first. out
and in have to be multiples of r, and out * r numbers are trained. Kang 2024, the weight-guided form, which peft calls
MiSS with `init_weights="bat"`. The changed matrix is made anew at every step.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trimtab.core.card import Card, Claim
from trimtab.core.errors import UsageError
from trimtab.core.kinds import LinearWeight, Seen
from trimtab.core.knobs import count
from trimtab.core.places import Site
from trimtab.core.trained import AdapterMethod, Delta, put
from trimtab.formats import Dense
from trimtab.formats.deltas import added


@dataclass(frozen=True)
class Bone(AdapterMethod):
    card: ClassVar = Card(
        id="bone",
        title="Bone: Block-Affine Adaptation of Large Language Models",
        paper="arXiv:2409.15371",
        fidelity="exact",
        beside=("pissa", "lora"),
        claims=(
            Claim(
                "beats-pissa",
                "bone(rank=16)",
                "<",
                "pissa(rank=8)",
                published="49.36 > 43.52 GSM8K accuracy, Llama-2-7B",
                model="asset:own-5m",
                text="asset:gsm8k-rest",
                note="adapted to asset:gsm8k, about the same number of trained parameters",
            ),
        ),
    )

    rank: int = count("length of a block's side; more is more parameters", 16)

    def fits(self, site: Site) -> None:
        if any(size % self.rank for size in site.shape):
            out, inputs = site.shape
            raise UsageError(f"bone: {site.name} is {out} x {inputs}; use a rank that divides both, or leave it out with --skip")

    def attach(self, weight: LinearWeight, seen: Seen, site: Site) -> "BlocksDelta":
        device = next(iter(weight.tensors().values())).device
        return BlocksDelta(torch.zeros(site.shape[0] // self.rank, self.rank, self.rank, device=device))

    def portable(self) -> dict[str, Any]:
        return {"peft_type": "MISS", "r": self.rank, "init_weights": "bat", "miss_dropout": 0.0, "bias": "none"}


class BlocksDelta(Delta):
    """blocks [out / r, r, r]: one small matrix for each row of blocks."""

    def __init__(self, blocks: Tensor):
        super().__init__()
        self.blocks = nn.Parameter(blocks)

    def forward(self, x: Tensor, product: Tensor, weight: Callable[[], Tensor]) -> Tensor:
        return F.linear(x, _change(weight(), self.blocks))

    def merged(self, weight: LinearWeight) -> LinearWeight | None:
        if not isinstance(weight, Dense):
            return None
        return added(weight, _change(weight.weight.double(), self.blocks.detach().double()))

    def portable(self) -> dict[str, Tensor]:
        return {"miss_block": self.blocks.detach()}

    def adopt(self, tensors: Mapping[str, Tensor]) -> None:
        put(self.blocks, tensors["miss_block"])


def _change(weight: Tensor, blocks: Tensor) -> Tensor:
    """[out, in]"""
    count, size, _ = blocks.shape
    cut = weight.reshape(count, size, -1, size)  # [row of blocks, row in it, block, column in it]
    changed = torch.einsum("oaib,obc->oaic", cut, blocks) + blocks[:, :, None, :]
    return changed.reshape(weight.shape)

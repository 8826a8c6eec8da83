"""Queryable LoRA: between the two factors of a LoRA every token is led through small matrices that all layers share.

z = A x, y = W x + (alpha / r) B (z + sum_k w_k M_k z). The atoms M_k [r, r], drawn with deviation 1 / sqrt(r), their keys and
the map Q that makes a query of z belong to the model, A and B to the matrix. w: softmax over the largest `top` of keys Q z /
sqrt(length of a key). arXiv 2605.08423, of which only the parts are known here, not the formulas. Different: every token asks
for itself, where there a block of layers asks once for a passage and passes a summary on; so nothing depends on later tokens,
and generation with a cache gives what training saw. Left out: the prior from the instruction, and the penalties. It depends
on the token, so it cannot be merged.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trimtab.core.card import Card, Claim
from trimtab.core.errors import UsageError
from trimtab.core.kinds import LinearWeight, Seen
from trimtab.core.knobs import count, number
from trimtab.core.places import Site
from trimtab.core.seeds import Seeds
from trimtab.core.trained import Delta, RankedMethod
from trimtab.formats.deltas import LowRankDelta, device_of, fresh_product


@dataclass(frozen=True)
class QueryableLora(RankedMethod):
    card: ClassVar = Card(
        id="queryable_lora",
        title="Queryable LoRA: Instruction-Regularized Routing Over Shared Low-Rank Update Atoms",
        paper="arXiv:2605.08423",
        fidelity="variant",
        beside=("lora", "fouriermoe"),
        claims=(
            Claim(
                "beats-lora",
                "queryable_lora(rank=8, alpha=8.0)",
                "<",
                "lora(rank=8, alpha=8.0)",
                model="asset:own-5m",
                text="asset:gsm8k-rest",
                note="adapted to asset:gsm8k; the left one has 1024 trained parameters more in the whole model",
            ),
        ),
    )

    alpha: float = number("the product is multiplied by alpha / rank", 32.0, low=0.001)
    atoms: int = count("small matrices in the model", 8)
    width: int = count("numbers in a key", 32)
    top: int = count("how many of them a token is led through", 2)
    key: int = count("what the atoms are drawn from", 0, low=0)

    def fits(self, site: Site) -> None:
        super().fits(site)
        if self.top > self.atoms:
            raise UsageError(
                f"queryable_lora: {site.name}: top {self.top} is more than there are atoms; use at most {self.atoms}"
            )

    def attach(self, weight: LinearWeight, seen: Seen, site: Site) -> "QueryDelta":
        memory = seen.once("queryable_lora", lambda: Memory(self).to(device_of(weight)))
        return QueryDelta(fresh_product(weight, self.rank, self.alpha / self.rank, seen.generator), memory)


class Memory(nn.Module):
    """atoms [K, r, r], keys [K, width], query [width, r]: one for all deltas of a model."""

    def __init__(self, of: QueryableLora):
        super().__init__()
        generator = Seeds(of.key).at("queryable_lora", of.rank, of.atoms, of.width)
        self.top = of.top
        self.atoms, self.keys, self.query = (
            nn.Parameter(torch.randn(*shape, generator=generator) * shape[-1] ** -0.5)
            for shape in ((of.atoms, of.rank, of.rank), (of.atoms, of.width), (of.width, of.rank))
        )

    def forward(self, z: Tensor) -> Tensor:
        """sum_k w_k M_k z, [..., r]"""
        weights = self.weights(z)
        each = torch.einsum("kij,...j->...ki", self.atoms, z)
        return (weights[..., None] * each).sum(-2)

    def weights(self, z: Tensor) -> Tensor:
        """[..., K], of which `top` are not zero and sum to one."""
        said = F.linear(F.linear(z, self.query), self.keys) * self.keys.shape[1] ** -0.5
        best = said.topk(self.top, -1)
        return torch.zeros_like(said).scatter(-1, best.indices, best.values.softmax(-1))


class QueryDelta(Delta):
    """factors: this matrix's LoRA; memory: everybody's."""

    def __init__(self, factors: LowRankDelta, memory: Memory):
        super().__init__()
        self.factors, self.memory = factors, memory

    def forward(self, x: Tensor, product: Tensor, weight: Callable[[], Tensor]) -> Tensor:
        z = F.linear(x, self.factors.right)
        return self.factors.scale * F.linear(z + self.memory(z), self.factors.left)

    def merged(self, weight: LinearWeight) -> LinearWeight | None:
        return None

"""DiffoRA: a search finds the matrices that need a LoRA of their own; the others of a kind share one over all blocks.

Before training, for `searched` of its steps, every matrix has an adapter whose answer is multiplied by a gate, softmax over the
block times the number of its matrices. Adapters and gates are moved in turn, by the rows of different steps. Then the `keep`
matrices of every block whose gates are open widest get an adapter of their own, matrices of one kind among the rest share one
pair, and all begin anew. With `keep` a half, that is about as many parameters as LoRA of half the rank.
Jiang et al. 2025, from the card: softmax gates, which growing adapters cannot close, and the Adam of the gates are filled in. The
steps of the search come on top of the training's. `choose` is for controls: the widest, the narrowest, or any gates.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Adam

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import LinearWeight, Seen
from trimtab.core.knobs import choice, number, rate
from trimtab.core.places import Site
from trimtab.core.trained import Delta, Hook, RankedMethod, Training
from trimtab.formats.deltas import LowRankDelta, fresh_product, lora_fields

BETAS = (0.5, 0.999)  # of the gates


@dataclass(frozen=True)
class Diffora(RankedMethod):
    card: ClassVar = Card(
        id="diffora",
        title="DiffoRA: Enabling Parameter-Efficient LLM Fine-Tuning via Differential Low-Rank Matrix Adaptation",
        paper="arXiv:2502.08905",
        fidelity="reconstructed",
        beside=("lora",),
        claims=(
            Claim(
                "beats-reversed",
                "diffora(rank=8)",
                "<",
                "diffora(rank=8, choose='narrowest')",
                model="asset:own-5m",
                text="asset:gsm8k-rest",
                note="adapted to asset:gsm8k, equal trained parameters",
            ),
            Claim(
                "beats-chance",
                "diffora(rank=8)",
                "<",
                "diffora(rank=8, choose='any')",
                model="asset:own-5m",
                text="asset:gsm8k-rest",
                note="adapted to asset:gsm8k, equal trained parameters",
            ),
        ),
    )

    alpha: float = number("the product is multiplied by alpha / rank", 32.0, low=0.001)
    keep: float = rate("fraction of a block's matrices with an adapter of their own", 0.5, low=0.01)
    searched: float = rate("steps of the search, as a fraction of the training's", 0.15)
    pace: float = number("learning rate of the gates", 0.01, low=0.0001)
    choose: str = choice("which gates win", "widest", ("widest", "narrowest", "any"))

    def attach(self, weight: LinearWeight, seen: Seen, site: Site) -> LowRankDelta:
        return fresh_product(weight, self.rank, self.alpha / self.rank, seen.generator)

    def hook(self, deltas: Mapping[Site, Delta]) -> "Selection":
        return Selection({site: delta for site, delta in deltas.items() if isinstance(delta, LowRankDelta)}, self)

    def portable(self) -> dict[str, Any]:
        return lora_fields(self.rank, self.alpha)


class Selection(Hook):
    """own: [matrices] int8, 1 for an adapter of its own, 0 for a shared one, -1 before the search."""

    def __init__(self, deltas: Mapping[Site, LowRankDelta], how: Diffora):
        self.sites, self.deltas, self.how = list(deltas), list(deltas.values()), how
        self.own = torch.full((len(deltas),), -1, dtype=torch.int8)
        self.block = torch.tensor([-1 if site.block is None else site.block for site in deltas])  # [matrices]

    def tensors(self) -> dict[str, Tensor]:
        return {"own": self.own}

    def begin(self, training: Training) -> None:
        if bool((self.own < 0).any()):
            self.own.copy_(self._chosen(self._gates(training), training))
        first: dict[tuple[object, ...], LowRankDelta] = {}
        for site, delta, own in zip(self.sites, self.deltas, self.own.tolist(), strict=True):
            if not own:
                common = first.setdefault((site.role, site.shape), delta)
                delta.left, delta.right = common.left, common.right

    def _gates(self, training: Training) -> Tensor:
        """[matrices], what the search comes to; the adapters are as fresh afterwards as before."""
        weights = [weight for delta in self.deltas for weight in (delta.left, delta.right)]
        fresh, scale = [weight.detach().clone() for weight in weights], self.how.alpha / self.how.rank
        gates = nn.Parameter(torch.zeros(len(self.deltas), device=weights[0].device))
        adapters, opening = Adam(weights, lr=training.learning_rate), Adam([gates], lr=self.how.pace, betas=BETAS)
        steps = max(1, round(self.how.searched * training.steps))
        for step in range(steps):
            opened = self.opened(gates)
            answers = [(scale * one.detach()).requires_grad_() for one in opened]
            for delta, answer in zip(self.deltas, answers, strict=True):
                delta.scale = answer
            for weight, pull in zip(weights, _pulls(training, step, weights), strict=True):
                weight.grad = pull
            adapters.step()
            gates.grad = torch.autograd.grad(opened, gates, torch.stack(_pulls(training, step + steps, answers)))[0]
            opening.step()
        for weight, value in zip(weights, fresh, strict=True):
            weight.data.copy_(value)
            weight.grad = None
        for delta in self.deltas:
            delta.scale = scale
        return gates.detach().cpu()

    def opened(self, gates: Tensor) -> Tensor:
        """[matrices]: softmax over the block times the number of its matrices; 1 for gates that are alike."""
        numbers = torch.unique(self.block, return_inverse=True)[1].to(gates.device)
        largest = torch.zeros_like(gates).scatter_reduce(0, numbers, gates.detach(), "amax", include_self=False)
        powers = (gates - largest[numbers]).exp()
        means = torch.zeros_like(gates).scatter_reduce(0, numbers, powers, "mean", include_self=False)
        return powers / means[numbers]

    def _chosen(self, gates: Tensor, training: Training) -> Tensor:
        draw = torch.rand(len(gates), generator=training.seeds.at("diffora"))
        scores = {"widest": gates, "narrowest": -gates, "any": draw}[self.how.choose]
        own = torch.zeros(len(gates), dtype=torch.int8)
        for block in torch.unique(self.block):
            there = (self.block == block).nonzero()[:, 0]
            own[there[scores[there].topk(ceil(self.how.keep * len(there))).indices]] = 1
        return own


def _pulls(training: Training, step: int, moved: Sequence[Tensor]) -> list[Tensor]:
    """The gradient of the loss of the rows that a step reads, of each of the tensors."""
    found = [torch.zeros_like(one) for one in moved]
    for part in training.losses(step):
        for whole, more in zip(found, torch.autograd.grad(part, moved, allow_unused=True, materialize_grads=True), strict=True):
            whole += more
    return found

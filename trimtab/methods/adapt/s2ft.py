"""S2FT: a few input channels of the down projection are trained, all others stay.

y = W x + D x[chosen], D [out, chosen] zero at first. The chosen channels of the block are neurons drawn at random; only their
activations are kept for the backward pass. Yang et al., NeurIPS 2024. Different: the same number in every block (there drawn
from all blocks together), the down projections only, which is the authors' default, and no permutation: picking the
channels by their numbers is the same function.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import LinearWeight, Seen
from trimtab.core.knobs import rate
from trimtab.core.places import Role, Site
from trimtab.core.trained import AdapterMethod, Delta
from trimtab.formats.deltas import added


@dataclass(frozen=True)
class S2ft(AdapterMethod):
    card: ClassVar = Card(
        id="s2ft",
        title="S2FT: Efficient, Scalable and Generalizable LLM Fine-tuning by Structured Sparsity",
        paper="arXiv:2412.06289",
        fidelity="variant",
        beside=("lora", "lisa"),
        claims=(
            Claim(
                "beats-lora",
                "s2ft(share=0.08)",
                "<",
                "lora(rank=1, alpha=2.0)",
                published="86.6 > 82.5 commonsense accuracy, Llama-3-8B",
                model="asset:own-5m",
                text="asset:gsm8k-rest",
                note="adapted to asset:gsm8k; about the same number of trained parameters",
            ),
        ),
    )

    share: float = rate("fraction of the input channels that are trained", 0.03, low=0.0001)

    def wants(self, site: Site) -> bool:
        return site.role is Role.DOWN

    def attach(self, weight: LinearWeight, seen: Seen, site: Site) -> "ColumnsDelta":
        out, inputs = site.shape
        device = next(iter(weight.tensors().values())).device
        count = max(1, round(self.share * inputs))
        chosen = torch.randperm(inputs, generator=seen.generator)[:count].sort().values
        return ColumnsDelta(chosen.to(device), torch.zeros(out, count, device=device))


class ColumnsDelta(Delta):
    """columns [out, chosen] are added to those of the matrix that `chosen` names, [chosen] int64."""

    def __init__(self, chosen: Tensor, columns: Tensor):
        super().__init__()
        self.chosen, self.columns = nn.Parameter(chosen, requires_grad=False), nn.Parameter(columns)

    def forward(self, x: Tensor, product: Tensor, weight: Callable[[], Tensor]) -> Tensor:
        return F.linear(x[..., self.chosen], self.columns)

    def merged(self, weight: LinearWeight) -> LinearWeight:
        columns = self.columns.detach()
        picked = F.one_hot(self.chosen, weight.shape[1]).float()  # [chosen, in]
        return added(weight, columns.double() @ picked.double(), (columns, picked))

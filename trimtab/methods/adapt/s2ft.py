"""S2FT: a few channels of the model are trained, all others stay.

y = W x + D x[chosen]       D [out, chosen], of matrices that read the channels: attention's output o, the down projection d
y[chosen] = W x + D x       D [chosen, in], of matrices that write them: values v, the up projection u

D is zero at first. The chosen channels are drawn at random; of a matrix that reads them only their activations are kept for the
backward pass. Adapters whose channels are not the same add up without disturbing each other. Yang et al., NeurIPS 2024.
Different: the same number in every block (there drawn from all blocks together), single channels of a head, and no permutation:
picking channels by their numbers is the same function. The down projections alone are the authors' default.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import LinearWeight, Seen
from trimtab.core.knobs import rate, text
from trimtab.core.places import Role, Site
from trimtab.core.trained import AdapterMethod, Delta
from trimtab.formats.deltas import added, device_of

ROLES = {"v": Role.V, "o": Role.O, "u": Role.UP, "d": Role.DOWN}
WRITERS = (Role.V, Role.UP)


def _roles(slices: str) -> None:
    if not slices or len(set(slices)) != len(slices) or not set(slices) <= ROLES.keys():
        raise ValueError("slices are letters of v, o, u and d, each once")


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

    share: float = rate("fraction of a matrix' channels that are trained", 0.03, low=0.0001)
    slices: str = text("whose channels: any of v, o, u and d (values, attention's output, up, down)", "d", _roles)

    def wants(self, site: Site) -> bool:
        return site.role in {ROLES[letter] for letter in self.slices}

    def attach(self, weight: LinearWeight, seen: Seen, site: Site) -> "ColumnsDelta | RowsDelta":
        (out, inputs), device = site.shape, device_of(weight)
        writes = site.role in WRITERS
        channels = out if writes else inputs
        count = max(1, round(self.share * channels))
        chosen = torch.randperm(channels, generator=seen.generator)[:count].sort().values.to(device)
        if writes:
            return RowsDelta(chosen, torch.zeros(count, inputs, device=device))
        return ColumnsDelta(chosen, torch.zeros(out, count, device=device))


class ColumnsDelta(Delta):
    """columns [out, chosen] are added to those of the matrix that `chosen` names, [chosen] int64."""

    def __init__(self, chosen: Tensor, columns: Tensor):
        super().__init__()
        self.chosen, self.columns = nn.Parameter(chosen, requires_grad=False), nn.Parameter(columns)

    def forward(self, x: Tensor, product: Tensor, weight: Callable[[], Tensor]) -> Tensor:
        return F.linear(x[..., self.chosen], self.columns)

    def merged(self, weight: LinearWeight) -> LinearWeight:
        columns, picked = self.columns.detach(), _picked(self.chosen, weight.shape[1])
        return added(weight, columns.double() @ picked.double(), (columns, picked))


class RowsDelta(Delta):
    """rows [chosen, in] are added to those of the matrix that `chosen` names, [chosen] int64."""

    def __init__(self, chosen: Tensor, rows: Tensor):
        super().__init__()
        self.chosen, self.rows = nn.Parameter(chosen, requires_grad=False), nn.Parameter(rows)

    def forward(self, x: Tensor, product: Tensor, weight: Callable[[], Tensor]) -> Tensor:
        change = F.linear(x, self.rows)
        return change.new_zeros(product.shape).index_copy(-1, self.chosen, change)

    def merged(self, weight: LinearWeight) -> LinearWeight:
        rows, picked = self.rows.detach(), _picked(self.chosen, weight.shape[0]).mT
        return added(weight, picked.double() @ rows.double(), (picked, rows))


def _picked(chosen: Tensor, channels: int) -> Tensor:
    """[chosen, channels], a one in every row."""
    return F.one_hot(chosen, channels).float()

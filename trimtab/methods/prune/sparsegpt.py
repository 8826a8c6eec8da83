"""SparseGPT: prune in one optimal-brain sweep, each dropped weight made up for by those to its right.

In every group of columns the weights with the smallest  w^2 / U_ii^2  go (U: upper factor of the inverse gram), chosen over
the compensated weights of all rows together, or inside each row's M for an N:M pattern; then as in `tensors.columns`.
Frantar & Alistarh, ICML 2023 (arXiv:2301.00774). Same as the paper, except that silent input channels are not zeroed by
hand: damping alone decides about them.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import LinearMethod, Seen
from trimtab.core.knobs import count, rate, text
from trimtab.core.places import Site
from trimtab.formats import Dense, Masked
from trimtab.formats.plain import check_pattern, plain
from trimtab.stats import Gram
from trimtab.tensors.columns import sweep
from trimtab.tensors.masks import Pattern, keep_top, keep_top_of_matrix
from trimtab.tensors.spd import inverse_upper


@dataclass(frozen=True)
class SparseGPT(LinearMethod):
    card: ClassVar = Card(
        id="sparsegpt",
        title="SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot",
        paper="arXiv:2301.00774",
        fidelity="exact",
        beside=("wanda", "magnitude"),
        claims=(
            Claim(
                "beats-wanda-at-60",
                "sparsegpt(sparsity=0.6)",
                "<",
                "wanda(sparsity=0.6)",
                published="10.51 < 10.66, LLaMA-7B, WikiText2, as given in the Wanda paper",
            ),
        ),
    )
    needs: ClassVar = (Gram,)
    takes: ClassVar = (Dense, Masked)
    gives: ClassVar = (Masked,)

    sparsity: float = rate("fraction of weights removed (an N:M pattern decides it instead)", 0.5, high=0.99)
    pattern: str = text("'unstructured' or 'N:M'", "unstructured", Pattern.parse)
    damping: float = rate("added to the gram, as a fraction of its mean diagonal", 0.01)
    block: int = count("columns whose weights compete at a time (unstructured)", 128)

    def fits(self, site: Site) -> None:
        check_pattern(self.pattern, site.shape[1], site.name)

    def solve(self, weight: Dense | Masked, seen: Seen, site: Site) -> Masked:
        upper, used = seen.once((SparseGPT, self.damping), lambda: inverse_upper(seen[Gram], self.damping))
        seen.note("damping", used)
        alive = weight.keep if isinstance(weight, Masked) else torch.ones_like(weight.weight, dtype=torch.bool)
        chooser = Saliency(alive, self.sparsity, Pattern.parse(self.pattern), self.block)
        chosen = sweep(weight.dense(), upper, chooser)
        return Masked(chosen.to(plain(weight).dtype), torch.cat(chooser.keep).T)


class Saliency:
    """Column chooser: keeps a column's weights or drops them, as decided for its whole group.

    alive: [out, in] bool; what an earlier step pruned counts as removed, and no compensation brings it back.
    """

    def __init__(self, alive: Tensor, sparsity: float, pattern: Pattern, block: int):
        self.alive, self.sparsity, self.pattern = alive, sparsity, pattern
        self.width = pattern.m or min(block, alive.shape[1])
        self.keep: list[Tensor] = []  # [width, out] each

    def enter(self, start: int, columns: Tensor, diagonal: Tensor) -> None:
        alive = self.alive[:, start : start + len(columns)]
        score = (columns / diagonal[:, None]).square().T.masked_fill(~alive, -1)  # [out, width]
        if self.pattern.m:
            keep = keep_top(score, self.sparsity, self.pattern)
        else:
            keep = keep_top_of_matrix(score, self.sparsity)
        self.keep.append((keep & alive).T)

    def choose(self, index: int, column: Tensor) -> Tensor:
        return column * self.keep[-1][index % self.width]

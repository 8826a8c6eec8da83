"""SLiM: prune, round and add a low-rank term in one pass, all three weighed by how loud the inputs are.

With s[i] the root mean square of input i, M the mask of Wanda, Q one clipped scale for the matrix (`slim_quant`):
    left @ right = truncated SVD of (W - Q(W M)) diag(s), brought back by diag(1/s)
    W ~ Q((W - left @ right) M) + left @ right,
the core being made anew for what the term leaves over, under the same mask.
Mozaffari et al., ICML 2025 (arXiv:2410.09615). The clipping range is fitted to the survivors; s is the root of the mean square,
as in the authors' code, where the text says mean magnitude. group_size is their other quantizer: scales of groups up to
their largest weight. Without their later tuning and without quantized factors. Zeros are stored as codes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import LinearMethod, Seen
from trimtab.core.knobs import count, rate, text
from trimtab.core.places import Site
from trimtab.formats import Dense, Grouped, Masked, Sum, check_group_size, low_rank
from trimtab.formats.plain import check_pattern, grouped_spec, low_rank_spec
from trimtab.stats import InputNorm
from trimtab.tensors.clipping import one_scale
from trimtab.tensors.lowrank import audible, truncated
from trimtab.tensors.masks import Pattern, keep_top
from trimtab.tensors.rounding import fit

SHARE = 10  # the smaller side of the matrix, in ranks of the added term, if nothing else is asked for


@dataclass(frozen=True)
class Slim(LinearMethod):
    card: ClassVar = Card(
        id="slim",
        title="SLiM: One-shot Quantization and Sparsity with Low-rank Approximation for LLM Weight Compression",
        paper="arXiv:2410.09615",
        fidelity="exact",
        beside=("slim_quant", "wanda", "lqer", "eora"),
        claims=(
            Claim(
                "the-term-helps-one-scale",
                "slim",
                "<",
                "wanda(pattern='2:4') -> slim_quant",
                note="the left side is larger by the two factors",
            ),
            Claim(
                "beats-mending-afterwards",
                "slim(group_size=64, rank=58)",
                "<",
                "wanda(pattern='2:4') -> rtn(group_size=64, symmetric=True) -> lqer(rank=58)",
                note="equal bytes; the core is made anew on the left, and nowhere else do the sides differ",
            ),
        ),
    )
    needs: ClassVar = (InputNorm,)
    takes: ClassVar = (Dense, Masked)
    gives: ClassVar = (Sum,)

    sparsity: float = rate("fraction of weights removed (an N:M pattern decides it instead)", 0.5, high=0.99)
    pattern: str = text("'unstructured' or 'N:M'", "2:4", Pattern.parse)
    bits: int = count("bits per code", 4, 2, 8)
    group_size: int = count("inputs that share a scale, up to the largest weight; 0 = one clipped scale for the matrix", 0, 0)
    rank: int = count("rank of the added term; 0 = a tenth of the smaller side", 0, 0)

    def fits(self, site: Site) -> None:
        check_pattern(self.pattern, site.shape[1], site.name)
        check_group_size(site.shape[1], self.group_size or site.shape[1], site.name)

    def promises(self, site: Site, spec: Mapping[str, Any]) -> dict[str, Any]:
        core = grouped_spec(site.shape, self.bits, self.group_size or site.shape[1], symmetric=True)
        added = low_rank_spec(site.shape, self._rank(site), "float16")
        return {"kind": Sum.kind, "shape": [*site.shape], "parts": [core, added]}

    def solve(self, weight: Dense | Masked, seen: Seen, site: Site) -> Sum:
        dense, root = weight.dense(), audible(seen[InputNorm])
        keep = keep_top(dense.abs() * root.float(), self.sparsity, Pattern.parse(self.pattern))
        factors = truncated(dense - self._rounded(dense * keep).dense(), self._rank(site), root)
        term = low_rank(factors.left, factors.right, torch.float16)
        return Sum((self._rounded((dense - term.dense()) * keep), term))

    def _rank(self, site: Site) -> int:
        smaller = min(site.shape)
        return min(self.rank or max(1, smaller // SHARE), smaller)

    def _rounded(self, weight: Tensor) -> Grouped:
        if not self.group_size:
            codes, scale = one_scale(weight, self.bits)
            return Grouped(codes, scale, None, self.bits, weight.shape[1])
        groups = weight.view(len(weight), -1, self.group_size)
        return Grouped.on_grid(fit(groups, self.bits, symmetric=True), groups, symmetric=True)

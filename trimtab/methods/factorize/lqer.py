"""LQER: a low-rank term that makes up for what an earlier step took away.

With s[i] the root mean square of input i, the truncated SVD of (W - W') diag(s), brought back by diag(1/s), is added to the
compressed W':  W ~ W' + left @ right.  Works on top of any format.
Zhang et al., ICML 2024 (arXiv:2402.02446), the activation-scaled form; s is not renormalized, which changes nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import LinearMethod, LinearWeight, Original, Seen
from trimtab.core.knobs import count
from trimtab.core.places import Site
from trimtab.formats import Sum, low_rank
from trimtab.formats.plain import low_rank_spec
from trimtab.stats import InputNorm
from trimtab.tensors.lowrank import truncated

SILENT = 1e-3  # of the mean: channels that were not heard keep a little weight, so that s can be divided by


@dataclass(frozen=True)
class Lqer(LinearMethod):
    card: ClassVar = Card(
        id="lqer",
        title="LQER: Low-Rank Quantization Error Reconstruction for LLMs",
        paper="arXiv:2402.02446",
        fidelity="exact",
        beside=("svd_llm", "gptq"),
        claims=(
            Claim(
                "helps-rtn-at-3-bit",
                "rtn(bits=3) -> lqer(rank=32)",
                "<",
                "rtn(bits=3)",
                note="the left side is larger by the two factors",
            ),
        ),
    )
    needs: ClassVar = (InputNorm, Original)
    takes: ClassVar = (LinearWeight,)
    gives: ClassVar = (Sum,)

    rank: int = count("rank of the added term", 32)

    def promises(self, site: Site, spec: Mapping[str, Any]) -> dict[str, Any]:
        added = low_rank_spec(site.shape, min(self.rank, *site.shape), "float16")
        return {"kind": Sum.kind, "shape": [*site.shape], "parts": [dict(spec), added]}

    def solve(self, weight: LinearWeight, seen: Seen, site: Site) -> Sum:
        root = seen[InputNorm].double()
        root = root.clamp(min=SILENT * float(root.mean())) if bool(root.any()) else torch.ones_like(root)
        factors = truncated(seen[Original] - weight.dense(), min(self.rank, *site.shape), root)
        return Sum((weight, low_rank(factors.left, factors.right, torch.float16)))

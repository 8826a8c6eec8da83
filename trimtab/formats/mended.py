"""Low-rank terms that make up for what earlier steps took away: what LQER and EoRA share, which differ in the metric alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from trimtab.core.kinds import LinearMethod, LinearWeight, Original, Seen
from trimtab.core.knobs import count
from trimtab.core.places import Site
from trimtab.formats.lowrank import low_rank
from trimtab.formats.plain import low_rank_spec
from trimtab.formats.sum import Sum
from trimtab.tensors.lowrank import truncated


@dataclass(frozen=True)
class Mended(LinearMethod):
    """The knob of such a method, its promises, and `mended`, which its `solve` is made of. It needs `Original`."""

    takes: ClassVar = (LinearWeight,)
    gives: ClassVar = (Sum,)

    rank: int = count("rank of the added term", 32)

    def promises(self, site: Site, spec: Mapping[str, Any]) -> dict[str, Any]:
        added = low_rank_spec(site.shape, min(self.rank, *site.shape), "float16")
        return {"kind": Sum.kind, "shape": [*site.shape], "parts": [dict(spec), added]}

    def mended(self, weight: LinearWeight, seen: Seen, root: Tensor) -> Sum:
        """The given weight and the term with the least error ||(W - W' - left @ right) root||. root: as `truncated` takes it."""
        factors = truncated(seen[Original] - weight.dense(), min(self.rank, *weight.shape), root)
        return Sum((weight, low_rank(factors.left, factors.right, torch.float16)))

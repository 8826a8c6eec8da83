"""Sparsities that whole blocks have in common: what the heuristics that score blocks share."""

from collections.abc import Sequence

import torch
from torch import Tensor

from trimtab.core.errors import UsageError
from trimtab.core.places import Site
from trimtab.tensors.spreading import around

MOST = 0.99  # that any pruning method takes


def by_block(sites: Sequence[Site], who: str) -> dict[int, list[Site]]:
    """The sites of every block, in order. Raises `UsageError` for one that is in none."""
    found: dict[int, list[Site]] = {}
    for site in sites:
        if site.block is None:
            raise UsageError(f"{who}: {site.name} is in no block; restrict `where` to the blocks")
        found.setdefault(site.block, []).append(site)
    return dict(sorted(found.items()))


def sparsities(sites: Sequence[Site], offsets: Tensor, mean: float, who: str) -> dict[Site, float]:
    """mean + offset of every block, shifted and kept in range such that the mean over weights is `mean`. offsets: [blocks]."""
    blocks = by_block(sites, who)
    weights = torch.tensor([sum(s.shape[0] * s.shape[1] for s in own) for own in blocks.values()], dtype=torch.float64)
    values = around(offsets, weights, mean, 0.0, MOST).tolist()
    return {site: value for own, value in zip(blocks.values(), values, strict=True) for site in own}

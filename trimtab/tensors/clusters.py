"""k-means (Lloyd) without chance: the first centres are points evenly spaced in the order given."""

import torch
from torch import Tensor


def kmeans(points: Tensor, count: int, rounds: int = 20) -> Tensor:
    """Which of at most `count` clusters each point belongs to, [n] int64. points: [n, width]. A cluster may be empty."""
    count = min(count, len(points))
    centres = points[torch.linspace(0, len(points) - 1, count, device=points.device).long()].clone()
    labels = _nearest(points, centres)
    for _ in range(rounds):
        sizes = torch.bincount(labels, minlength=count)
        sums = torch.zeros_like(centres).index_add_(0, labels, points)
        centres = torch.where(sizes[:, None] > 0, sums / sizes.clamp(min=1)[:, None], centres)
        moved = _nearest(points, centres)
        if torch.equal(moved, labels):
            break
        labels = moved
    return labels


def _nearest(points: Tensor, centres: Tensor) -> Tensor:
    return (centres.square().sum(1) - 2 * points @ centres.T).argmin(1)

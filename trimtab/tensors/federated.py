"""Low-rank changes of several parties made one: stacked, which is exact, or averaged factor by factor, which is not.

A change is (left [out, rank], right [rank, in]). The mean of products is not the product of means: averaging factors brings in
left_i @ right_j of different parties, and parties of lower rank have to be filled up with zeros. Stacking keeps every product
apart and lets every party choose its own rank (FLoRA, Wang et al., NeurIPS 2024).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Factors = tuple[Tensor, Tensor]


def stacked(parts: Sequence[Factors], shares: Sequence[float]) -> Factors:
    """left [out, sum of ranks] and right [sum of ranks, in], whose product is the sum of share * left_k @ right_k."""
    lefts = [left for left, _ in parts]
    # Only one side is weighed: with both, the shares would come in squared.
    rights = [share * right for (_, right), share in zip(parts, shares, strict=True)]
    return torch.cat(lefts, 1), torch.cat(rights, 0)


def averaged(parts: Sequence[Factors], shares: Sequence[float]) -> Factors:
    """left [out, largest rank] and right: the means of the factors (federated averaging), filled up with zeros to one rank."""
    rank = max(left.shape[1] for left, _ in parts)
    lefts = (share * F.pad(left, (0, rank - left.shape[1])) for (left, _), share in zip(parts, shares, strict=True))
    rights = (share * F.pad(right, (0, 0, 0, rank - len(right))) for (_, right), share in zip(parts, shares, strict=True))
    return torch.stack([*lefts]).sum(0), torch.stack([*rights]).sum(0)

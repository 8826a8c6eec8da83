"""SAES-SVD: factors that also make up for what the compressed blocks before them have already changed in the inputs.

    min over rank k of ||W' X - W X||^2 + a ||W' X - W X°||^2,   b = a / (1 + a),   D = mean_t (x° - x) xᵀ,   gram = L Lᵀ:
the truncated SVD of  W (gram + b D) L^-T = G0 + b G1,  brought back by the inverse of L. x: inputs behind the compressed blocks,
x°: of the untouched model. b = 0 is `svd_llm`. Every matrix takes the b up to `most` that keeps the largest share of the
energy in the first k directions; with P the first k left singular vectors of G0, that share's lost part is the ratio of two
quadratics in b, and its minimum one of two roots or an end. P is then taken anew at the best b, once.
arXiv:2602.03051 (2026). The details of the search are reconstructed. Matrices of a block see the inputs from before the block was
changed, and one b serves where adapt is off.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import Seen
from trimtab.core.knobs import flag, rate
from trimtab.formats import Dense
from trimtab.formats.factored import Factored
from trimtab.stats import Drift, Gram
from trimtab.tensors.lowrank import Factors, truncated
from trimtab.tensors.spd import cholesky


@dataclass(frozen=True)
class SaesSvd(Factored):
    card: ClassVar = Card(
        id="saes_svd",
        title="SAES-SVD: Self-Adaptive Suppression of Accumulated and Local Errors for SVD-based LLM Compression",
        paper="arXiv:2602.03051",
        fidelity="reconstructed",
        beside=("svd_llm", "gptaq"),
        claims=(
            Claim(
                "beats-svd-llm-at-20",
                "saes_svd(keep=0.8)",
                "<",
                "svd_llm(keep=0.8)",
                note="the same bytes on both sides",
            ),
            Claim(
                "adapting-beats-one-coefficient",
                "saes_svd(keep=0.8)",
                "<",
                "saes_svd(keep=0.8, adapt=False, most=0.5)",
            ),
        ),
    )
    needs: ClassVar = (Gram, Drift)

    most: float = rate("largest share of the untouched model's inputs in what is aimed at", 0.9, high=0.99)
    adapt: bool = flag("choose that share for every matrix; else it is `most`", True)
    damping: float = rate("added to the gram, as a fraction of its mean diagonal", 1e-4)

    def factors(self, weight: Dense, rank: int, seen: Seen) -> Factors:
        root, used = seen.once((SaesSvd, self.damping), lambda: cholesky(seen[Gram], self.damping))
        wide = weight.dense().double()
        moved = torch.linalg.solve_triangular(root, (wide @ seen[Drift].double()).T, upper=False).T  # G1
        share = best_share(wide @ root, moved, rank, self.most) if self.adapt else self.most
        seen.note("damping", used)
        seen.note("share", share)
        target = wide + share * torch.linalg.solve_triangular(root, moved, upper=False, left=False)
        return truncated(target, rank, root)


def best_share(still: Tensor, moved: Tensor, rank: int, most: float) -> float:
    """b in [0, most] for which the first `rank` directions of still + b moved, [out, in] both, hold the largest share of it."""
    best = 0.0
    for _ in range(2):  # with the directions at 0, then with those at the answer
        kept = torch.linalg.svd(still + best * moved, full_matrices=False)[0][:, :rank]
        whole = _quadratic(still, moved)
        inside = _quadratic(kept.T @ still, kept.T @ moved)
        lost = tuple(w - i for w, i in zip(whole, inside, strict=True))
        ends = [0.0, most, *(b for b in _stationary(lost, whole) if 0 < b < most)]
        best = min(ends, key=lambda b: _at(lost, b) / max(_at(whole, b), torch.finfo(torch.float64).tiny))
    return best


Quadratic = tuple[float, float, float]  # constant, linear, square


def _quadratic(still: Tensor, moved: Tensor) -> Quadratic:
    """||still + b moved||^2 in b."""
    return float(still.square().sum()), 2 * float((still * moved).sum()), float(moved.square().sum())


def _at(of: Quadratic, b: float) -> float:
    return of[0] + b * (of[1] + b * of[2])


def _stationary(over: Quadratic, under: Quadratic) -> list[float]:
    """Where over / under does not change: the zeros of over' under - over under', a quadratic as the cubes cancel."""
    (o, p, q), (u, v, w) = over, under
    square, linear, constant = q * v - p * w, 2 * (q * u - o * w), p * u - o * v
    if square == 0:
        return [-constant / linear] if linear else []
    inside = linear**2 - 4 * square * constant
    return [(-linear + sign * inside**0.5) / (2 * square) for sign in (1, -1)] if inside >= 0 else []

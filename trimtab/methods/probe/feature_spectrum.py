"""Feature spectrum: how evenly the hidden states fill their directions, before and after the last norm.

For what leaves every block, and for that after the final norm (what the head would be given there): the eigenvalues of the
covariance of one window's tokens, their entropy as a fraction of the largest possible ("spread": 1 = all directions alike) and
effective rank exp(entropy). "power" is the slope of log sigma after against log sigma before, by rank: where a head was trained
on top, theory says 2 (strengths are squared), and the spread before is larger than after.
The diagnostic of arXiv:2403.11391, which is about projection heads; of a language model only the final norm is compared here.
The first token is left out; means over windows, so every spectrum has at most length - 1 directions.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import Finding, ProbeMethod, Subject
from trimtab.core.knobs import number
from trimtab.tensors.spectrum import effective_rank, singular_values


@dataclass(frozen=True)
class FeatureSpectrum(ProbeMethod):
    card: ClassVar = Card(
        id="feature_spectrum",
        title="Investigating the Benefits of Projection Head for Representation Learning",
        paper="arXiv:2403.11391",
        fidelity="variant",
        beside=("top_singular", "depth_efficiency"),
        claims=(
            Claim(
                "spread-is-larger-before-the-head",
                "feature_spectrum: spread before",
                ">",
                "feature_spectrum: spread after",
                metric="finding",
                note="the final norm in the place of a head, behind every block; the paper is about contrastive training",
            ),
        ),
    )

    floor: float = number("singular values below this fraction of the largest are left out of the power", 1e-4, 1e-7, 1.0)

    def measure(self, subject: Subject) -> list[Finding]:
        rows = [[self._look(subject, block, window) for window in range(subject.windows)] for block in subject.blocks()]
        tokens = subject.windows * (len(subject.hidden(0, 0)) - 1)
        about = {f"spread {where}": ("fraction", tokens) for where in ("before", "after")}
        about |= {f"effective rank {where}": ("directions", tokens) for where in ("before", "after")}
        found = Finding.columns(rows, {**about, "power": ("log/log", tokens)})
        before, last = found["spread before"], [finding.measurements[-1].value for finding in found.values()]
        comparison = "more" if last[0] > last[1] else "not more"
        found["spread before"] = before.saying(
            f"features are narrowest after blocks {before.lowest()}; at the end they are spread {comparison} evenly before the "
            f"norm ({last[0]:.3f}) than after it ({last[1]:.3f}), power {last[4]:.2f}"
        )
        return list(found.values())

    def _look(self, subject: Subject, block: int, window: int) -> dict[str, float]:
        hidden = subject.hidden(block + 1, window)[1:]
        before, after = _spectrum(hidden), _spectrum(subject.head_input(hidden))
        ranks = effective_rank(before.square()), effective_rank(after.square())
        most = math.log(len(before)) if len(before) > 1 else 1.0
        spread = [math.log(rank) / most if rank > 0 else 0.0 for rank in ranks]
        return {
            "spread before": spread[0],
            "spread after": spread[1],
            "effective rank before": ranks[0],
            "effective rank after": ranks[1],
            "power": self.power(before, after),
        }

    def power(self, before: Tensor, after: Tensor) -> float:
        """Least-squares slope of log after [n] on log before [n], both descending; 1 where there is nothing to tell apart."""
        kept = (before > self.floor * before[0]) & (after > self.floor * after[0])
        x, y = before[kept].log(), after[kept].log()
        x, y = x - x.mean(), y - y.mean()
        square = float(x.square().sum())
        return float(x @ y) / square if square > 1e-12 else 1.0


def _spectrum(features: Tensor) -> Tensor:
    """Singular values [min(tokens, width)] of centred features [tokens, width], descending."""
    wide = features.to(torch.float64)
    return singular_values(wide - wide.mean(0))

"""Top singular: the largest singular value, the ranks and the gain of every matrix.

sigma_max by power iteration; stable rank |W|_F^2 / sigma_max^2; effective rank exp(entropy of sigma / sum sigma) as a fraction of
the full one; gain RMS(W x) / RMS(x) on the inputs the matrix is given, without the first token, and on white noise, where it is
|W|_F / sqrt(in): inputs that meet the large directions gain more. Where many experts play one role, the largest sigma_max and
the means.
The diagnostic of arXiv:2510.15262: under its rule of weight decay sigma_max and gain do not depend on the width of the model.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import Finding, ProbeMethod, Subject
from trimtab.core.knobs import count, flag
from trimtab.core.places import Role, Site
from trimtab.tensors.spectrum import effective_rank, largest_singular_value, singular_values, stable_rank

UNITS = {"stable rank": "directions", "effective rank": "fraction of full rank", "gain on noise": "RMS out / RMS in"}
TINY = 1e-300


@dataclass(frozen=True)
class TopSingular(ProbeMethod):
    card: ClassVar = Card(
        id="top_singular",
        title="Robust Layerwise Scaling Rules by Proper Weight Decay Tuning",
        paper="arXiv:2510.15262",
        fidelity="exact",
        beside=("svd", "feature_spectrum"),
        claims=(
            Claim(
                "inputs-meet-the-large-directions",
                "top_singular: gain",
                ">",
                "top_singular: gain on noise",
                metric="finding",
                note="what the diagnostic rests on; the paper's own claim is about widths and takes models of several",
            ),
        ),
    )

    iterations: int = count("steps of power iteration", 20)
    effective: bool = flag("also the effective rank, which takes all singular values", True)

    def measure(self, subject: Subject) -> list[Finding]:
        gains, spectra = [], []
        for block in subject.blocks():
            sites = subject.anatomy.block_sites(block)
            weights = {site: subject.anatomy.weight(site).dense() for site in sites}
            spectra.append([self._spectrum(weights, subject.generator)])
            gains.append([_gain(subject, block, window, weights) for window in range(subject.windows)])
        roles = [role for role in Role if any(f"sigma_max {role}" in row[0] for row in spectra)]
        matrices = max(len(subject.anatomy.block_sites(block)) for block in range(len(spectra)))
        names = ["sigma_max", *(f"sigma_max {role}" for role in roles), "stable rank"]
        names += ["effective rank", "gain on noise"] if self.effective else ["gain on noise"]
        found = [_exact(name, spectra, matrices) for name in names]
        tokens = subject.windows * (len(subject.hidden(0, 0)) - 1)
        found += Finding.columns(gains, {"gain": ("RMS out / RMS in", tokens)}).values()
        found[0] = found[0].saying(f"largest singular values in blocks {found[0].highest()}")
        return found

    def _spectrum(self, weights: dict[Site, Tensor], generator: torch.Generator) -> dict[str, float]:
        largest = {site: largest_singular_value(weight, self.iterations, generator) for site, weight in weights.items()}
        roles = {site.role for site in weights}
        tops = {f"sigma_max {role}": max(largest[site] for site in weights if site.role is role) for role in roles}
        ranks = {"stable rank": _mean(stable_rank(weight, largest[site]) for site, weight in weights.items())}
        ranks["gain on noise"] = _mean(float(w.double().norm()) / w.shape[1] ** 0.5 for w in weights.values())
        if self.effective:
            ranks["effective rank"] = _mean(effective_rank(singular_values(w)) / min(w.shape) for w in weights.values())
        return {"sigma_max": max(largest.values()), **tops, **ranks}


def _exact(name: str, rows: Sequence[Sequence[dict[str, float]]], matrices: int) -> Finding:
    having = [block for block, row in enumerate(rows) if name in row[0]]
    unit = UNITS.get(name, "singular value")
    values = torch.tensor([rows[block][0][name] for block in having], dtype=torch.float64)
    return Finding.of(name, unit, values, matrices if name in UNITS else 1, having)


def _gain(subject: Subject, block: int, window: int, weights: dict[Site, Tensor]) -> dict[str, float]:
    """Mean over the block's matrices. Of an expert's tokens the first is not known, and all count."""
    seen = subject.inputs(block, window, list(weights))
    kept = {site: (x if site.index is not None else x[1:]).float() for site, x in seen.items()}
    return {"gain": _mean(_rms(x @ weights[site].T) / max(_rms(x), TINY) for site, x in kept.items())}


def _rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def _mean(values: Iterable[float]) -> float:
    every = list(values)
    return sum(every) / len(every)

"""ELUTQ's block-wise tuning: weights, plane scales and offsets are learned together until the block answers as it did.

W^ = offset + sum_j scale_j plane_j, from the alternating fit of `hlq`; at every step each weight's code is the level nearest to
a weight behind that is trained along, and gradients pass the choice. `elutq_tuning` then trains the scales of all blocks.
ELUTQ, arXiv:2510.19482, first stage of its fine-tuning. The directory of the code is announced, not there: the optimizer's
settings are ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import BlockMethod, Learner, LinearWeight, Seen
from trimtab.core.knobs import count, number
from trimtab.core.places import Site
from trimtab.formats import BitPlanes, Dense, check_group_size
from trimtab.formats.latent import LatentPlanes
from trimtab.tensors.bitplanes import fit


@dataclass(frozen=True)
class Elutq(BlockMethod):
    card: ClassVar = Card(
        id="elutq",
        title="ELUTQ: Efficient LUT-Aware Quantization for Deploying Large Language Models on Edge Devices",
        paper="arXiv:2510.19482",
        fidelity="reconstructed",
        beside=("hlq", "elutq_tuning", "omniquant"),
        claims=(
            Claim("learned-planes-beat-fitted-ones", "elutq(bits=2)", "<", "hlq(bits=2)", note="2.75 stored bits on both sides"),
        ),
    )
    takes: ClassVar = (Dense,)
    gives: ClassVar = (BitPlanes,)

    bits: int = count("binary planes per weight", 2, 1, 4)
    group_size: int = count("inputs that share scales; 0 = the whole row", 64, 0)
    rounds: int = count("alternations of the fit that learning begins from", 10, 0, 100)
    epochs: int = count("passes over the calibration set", 10, 0)
    rate: float = number("learning rate of the weights behind", 1e-4, 0.0)
    scale_rate: float = number("learning rate of scales and offsets, in units of the scales' size", 1e-3, 0.0)

    def fits(self, site: Site) -> None:
        check_group_size(site.shape[1], self.group_size or site.shape[1], site.name)

    def promises(self, site: Site, spec: Mapping[str, Any]) -> dict[str, Any]:
        group_size = self.group_size or site.shape[1]
        return {"kind": BitPlanes.kind, "shape": [*site.shape], "planes": self.bits, "group_size": group_size}

    def begin(self, weight: LinearWeight, seen: Seen, site: Site) -> Learner:
        matrix = weight.dense()
        groups = matrix.reshape(site.shape[0], -1, self.group_size or site.shape[1])
        return LatentPlanes(matrix, fit(groups, self.bits, self.rounds), True, self.rate, self.scale_rate)

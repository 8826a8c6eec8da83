"""ELUTQ tuning, of the whole model: the codes of a quantized model stay, its scales and offsets learn the text.

Next-token cross-entropy over scales, offsets, codebooks and the gains of norms; the codes never change, so what is trained is
about 2 % of the weights. After `elutq`, which learns block by block, or any other step that quantizes.
ELUTQ, arXiv:2510.19482, second stage of its fine-tuning. The directory of the code is announced, not there: the optimizer's
settings are ours. Scales are learned as distances from where they began, in units of their size.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import Seen
from trimtab.core.knobs import count, number
from trimtab.core.taught import Pupil, TaughtMethod, gains
from trimtab.formats.moving import Pace, quantized
from trimtab.formats.taught import Reader

if TYPE_CHECKING:
    from trimtab.anatomy import Anatomy


@dataclass(frozen=True)
class ElutqTuning(TaughtMethod):
    card: ClassVar = Card(
        id="elutq_tuning",
        title="ELUTQ: Efficient LUT-Aware Quantization for Deploying Large Language Models on Edge Devices",
        paper="arXiv:2510.19482",
        fidelity="reconstructed",
        beside=("elutq", "pv_tuning", "hlq"),
        claims=(
            Claim(
                "tuned-scales-beat-fitted-ones",
                "hlq(bits=2) -> elutq_tuning",
                "<",
                "hlq(bits=2)",
                published="19.1 < 27.1, LLaMA3-8B at 2 bits, C4, both stages of tuning",
                note="equal bits; the left side reads the calibration text for 100 steps more",
                model="asset:own-5m",
            ),
        ),
    )
    preserves: ClassVar = True
    packed: ClassVar = True

    steps: int = count("steps of training", 100)
    windows: int = count("windows in a step", 4)
    learning_rate: float = number("the highest one of scales, in units of their size, and of gains", 1e-3, low=1e-8)

    def begin(self, anatomy: "Anatomy", seen: Seen) -> Pupil:
        codes_stay = Pace(share=0.0, trust=0.0, reach=0.0, forget=1.0)
        weights = {site: anatomy.weight(site) for site in self.sites(anatomy)}
        return Reader(quantized(weights, "elutq_tuning", codes_stay), gains(anatomy))

    def trained(self, anatomy: "Anatomy") -> int:
        """Scales and offsets: two for every 16 weights are more than any format has."""
        return sum(site.shape[0] * site.shape[1] // 8 for site in self.sites(anatomy))

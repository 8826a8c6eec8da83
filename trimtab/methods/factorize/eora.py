"""EoRA: the low-rank term that makes up best for what an earlier step took away, by the layer's output.

With gram = L Lᵀ, the truncated SVD of (W - W') L, brought back by the inverse of L, is added to the compressed W'; of all
terms of that rank it leaves the least ||(W - W' - left @ right) X||_F. Works on top of any format.
Liu et al., 2024 (arXiv:2410.21271). Theirs is L = Q sqrt(D) of the eigendecomposition; every factor of the gram gives the same
product, so the triangular one is taken, of a damped gram where they raise small eigenvalues. Inputs come from the
compensated prefix. Their calibration text is that of the task: give it in the recipe.
"""

from dataclasses import dataclass
from typing import ClassVar

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import LinearWeight, Original, Seen
from trimtab.core.knobs import rate
from trimtab.core.places import Site
from trimtab.formats import Sum
from trimtab.formats.mended import Mended
from trimtab.stats import Gram
from trimtab.tensors.spd import cholesky

BOTH = "wanda(pattern='2:4') -> gptq(bits=3)"


@dataclass(frozen=True)
class Eora(Mended):
    card: ClassVar = Card(
        id="eora",
        title="EoRA: Training-free Compensation for Compressed LLM with Eigenspace Low-Rank Approximation",
        paper="arXiv:2410.21271",
        fidelity="exact",
        beside=("lqer", "svd_llm", "gptq"),
        claims=(
            Claim("beats-lqer-at-3-bit", "rtn(bits=3) -> eora", "<", "rtn(bits=3) -> lqer", note="equal rank, equal bytes"),
            Claim(
                "helps-3-bit-and-2-of-4",
                f"{BOTH} -> eora",
                "<",
                BOTH,
                note="the left side is larger by the two factors",
            ),
            Claim("more-rank-helps", f"{BOTH} -> eora(rank=64)", "<", f"{BOTH} -> eora", note="the left side is larger"),
        ),
    )
    needs: ClassVar = (Gram, Original)

    damping: float = rate("added to the gram, as a fraction of its mean diagonal", 1e-4)

    def solve(self, weight: LinearWeight, seen: Seen, site: Site) -> Sum:
        root, used = seen.once((Eora, self.damping), lambda: cholesky(seen[Gram], self.damping))
        seen.note("damping", used)
        return self.mended(weight, seen, root)

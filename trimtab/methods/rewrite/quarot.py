"""QuaRot: rotate the residual stream, so that no channel stands out - and the function stays the same.

Norm gains are folded into the matrices that read the norm's output; then with Q = H diag(signs) orthogonal (H: normalized
Hadamard, signs random): embedding E Q, readers W Q, writers Qᵀ W. An RMS norm without gain commutes with Q.  Inside attention
every head's values are rotated by a Hadamard that the output projection takes back.
Ashkboos et al., NeurIPS 2024 (arXiv:2404.00456), the part that costs nothing at inference; no online rotations.
A tied head gets a matrix of its own, because the final norm's gain is folded into it. LayerNorm models and models with norms
behind the writers do not commute with Q and are refused.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from trimtab.core.card import Card, Claim
from trimtab.core.edits import Edits, SetParam, SetWeight, Untie
from trimtab.core.kinds import ModelMethod, Seen
from trimtab.core.knobs import choice, flag
from trimtab.core.places import Role, Site, Unit
from trimtab.formats import Dense
from trimtab.formats.plain import plain
from trimtab.tensors.hadamard import hadamard

if TYPE_CHECKING:
    from trimtab.anatomy import Anatomy

WRITERS = (Role.O, Role.DOWN)


@dataclass(frozen=True)
class QuaRot(ModelMethod):
    card: ClassVar = Card(
        id="quarot",
        title="QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs",
        paper="arXiv:2404.00456",
        fidelity="variant",
        beside=("gptq", "rtn"),
        claims=(
            Claim(
                "helps-rtn-at-3-bit",
                "quarot -> rtn(bits=3, group_size=0)",
                "<",
                "rtn(bits=3, group_size=0)",
                note="one scale per row, where outliers hurt most",
            ),
        ),
    )
    preserves: ClassVar = True
    unties: ClassVar = True

    rotation: str = choice("Hadamard with random signs, or a random orthogonal matrix", "hadamard", ("hadamard", "orthogonal"))
    heads: bool = flag("also rotate the values inside every attention head", True)

    def rewrite(self, anatomy: "Anatomy", seen: Seen) -> Edits:
        width = next(s for s in anatomy.sites if s.role is Role.EMBED).shape[1]
        rotation = self._draw(width, seen.generator).to(next(anatomy.model.parameters()).device)
        weights = {site: plain(anatomy.weight(site)).double() for site in anatomy.sites}
        gains = anatomy.gains(self.card.id)
        for site in anatomy.sites:
            if site.role in WRITERS:
                weights[site] = rotation.T @ weights[site]
            elif site.role is Role.EMBED:
                weights[site] = weights[site] @ rotation
            else:
                weights[site] = weights[site] * gains[site] @ rotation
        edits: Edits = [Untie()] if anatomy.tied else []
        biases = {s: b.detach().double() for s in anatomy.sites if (b := anatomy.bias(s)) is not None}
        biases |= {s: rotation.T @ b for s, b in biases.items() if s.role in WRITERS}
        if self.heads:
            _rotate_heads(anatomy, weights, biases)
        edits += [SetWeight(s, Dense(w.to(plain(anatomy.weight(s)).dtype))) for s, w in weights.items()]
        edits += [SetParam(f"{s.path}.bias", b) for s, b in biases.items()]
        ones = torch.ones(width, dtype=torch.float64)
        edits += [SetParam(f"{n.path}.weight", ones - n.offset) for n in anatomy.norms()]
        return edits

    def _draw(self, width: int, generator: torch.Generator) -> Tensor:
        """An orthogonal matrix [width, width] float64."""
        if self.rotation == "orthogonal":
            q, r = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))
            return q * r.diagonal().sign()
        signs = torch.randint(0, 2, (width,), generator=generator) * 2 - 1
        return hadamard(width) * signs


def _rotate_heads(anatomy: "Anatomy", weights: dict[Site, Tensor], biases: dict[Site, Tensor]) -> None:
    """Rotate each head's values by a Hadamard and let the output projection take it back, in place."""
    for coupling in anatomy.couplings():
        value = next((m for m in coupling.members if m.site.role is Role.V), None)
        if coupling.unit is not Unit.KV_GROUP or value is None:
            continue
        head, output = value.indices.shape[1], coupling.consumer.site
        turn = hadamard(head).to(weights[output].device)
        weights[value.site] = (turn.T @ weights[value.site].reshape(-1, head, value.site.shape[1])).reshape(value.site.shape)
        weights[output] = (weights[output].reshape(output.shape[0], -1, head) @ turn).reshape(output.shape)
        if value.site in biases:
            biases[value.site] = (biases[value.site].reshape(-1, head) @ turn).flatten()

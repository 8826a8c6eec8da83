"""SliceGPT, with one basis: turn the residual stream to its principal directions, and cut the last ones off everywhere.

C = mean over blocks and tokens of y yᵀ, y the normalised stream; with the leading eigenvectors Q [width, kept] of C: embedding
E Q, readers W diag(gain) Q, writers Qᵀ W; a norm then divides by the root mean square over fewer channels, so its gain is
sqrt(width / kept). Nothing is cut inside of the blocks: heads and neurons stay.
Ashkboos et al., ICLR 2024 (arXiv:2401.15024). Different: the paper has a basis for every block, and matrices in the shortcuts
between them; one basis needs none, and the result is an ordinary, narrower model of its family. All of it is looked at before
anything is cut. A tied head gets a matrix of its own, which small models with large vocabularies feel. Models of layer norms, of
norms behind matrices, and of experts are refused.
"""

from dataclasses import dataclass
from math import lcm
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from trimtab.core.card import Card, Claim
from trimtab.core.edits import Edits, NarrowStream, SetParam, SetWeight, Untie
from trimtab.core.errors import ModelError, UsageError
from trimtab.core.kinds import ModelMethod, Seen
from trimtab.core.knobs import choice, count, rate
from trimtab.core.places import Role, query_heads
from trimtab.formats import Dense
from trimtab.formats.plain import plain
from trimtab.stats import StreamGram

if TYPE_CHECKING:
    from trimtab.anatomy import Anatomy

WRITERS = (Role.O, Role.DOWN)


@dataclass(frozen=True)
class SliceGPT(ModelMethod):
    card: ClassVar = Card(
        id="slicegpt",
        title="SliceGPT: Compress Large Language Models by Deleting Rows and Columns",
        paper="arXiv:2401.15024",
        fidelity="variant",
        beside=("quarot", "flap", "llm_pruner"),
        claims=(
            Claim(
                "beats-a-random-basis",
                "slicegpt(sparsity=0.125)",
                "<",
                "slicegpt(sparsity=0.125, basis='random')",
                note="both cut the same number of directions",
            ),
        ),
    )
    needs: ClassVar = (StreamGram,)
    unties: ClassVar = True

    sparsity: float = rate("fraction of the residual stream's width that goes", 0.25, high=0.9)
    multiple: int = count("of which the width left is a multiple, and of the number of heads", 8)
    basis: str = choice("directions by how much of the stream they hold, or drawn", "principal", ("principal", "random"))

    def rewrite(self, anatomy: "Anatomy", seen: Seen) -> Edits:
        if any(site.index is not None for site in anatomy.sites):
            raise ModelError("slicegpt: experts live in one tensor of a fixed width; this model cannot be sliced")
        gains = anatomy.gains(self.card.id)
        width = anatomy.sites[0].shape[1]
        turn = self._directions(seen, width)[:, : self._kept(anatomy, width)]  # [width, kept]
        edits: Edits = [Untie()] if anatomy.tied else []
        edits.append(NarrowStream(turn.shape[1]))
        for site in anatomy.sites:
            stored, bias = plain(anatomy.weight(site)), anatomy.bias(site)
            if site.role in WRITERS:
                weight = turn.T @ stored.double()
            else:
                weight = stored.double() * gains.get(site, 1.0) @ turn  # the embedding has no gain
            edits.append(SetWeight(site, Dense(weight.to(stored.dtype))))
            if site.role in WRITERS and bias is not None:
                edits.append(SetParam(f"{site.path}.bias", turn.T @ bias.double()))
        gain = torch.full((turn.shape[1],), (width / turn.shape[1]) ** 0.5, dtype=torch.float64)
        return edits + [SetParam(f"{norm.path}.weight", gain - norm.offset) for norm in anatomy.norms()]

    def _kept(self, anatomy: "Anatomy", width: int) -> int:
        """The width that is left. Families derive, or check, the width of a head from the stream's: heads divide it."""
        step = lcm(self.multiple, query_heads(anatomy.couplings()))
        kept = round((1 - self.sparsity) * width / step) * step if self.sparsity else width
        if not 0 < kept <= width:
            raise UsageError(
                f"slicegpt: no multiple of {step} is near {(1 - self.sparsity) * width:.0f}; use another sparsity or multiple"
            )
        return kept

    def _directions(self, seen: Seen, width: int) -> Tensor:
        """[width, width] float64, orthogonal, those that matter most first."""
        gram = seen[StreamGram].double().mean(0)
        if self.basis == "random":
            drawn = torch.randn(width, width, generator=seen.generator, dtype=torch.float64)
            return torch.linalg.qr(drawn).Q.to(gram.device)
        return torch.linalg.eigh(gram).eigenvectors.flip(1)

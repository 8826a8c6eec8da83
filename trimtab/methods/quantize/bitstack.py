"""BitStack: a matrix as a stack of one-bit blocks, of which any number may be left out when the model is opened.

With R the part of W that the blocks before leave over, a block is  sign(R) * (left @ right),  left @ right the best rank
`rank` of |R| diag(a), brought back by diag(1/a), a[i] the root mean square of input i. The scale costs nothing: it is inside
`right`. Every block carries what it is worth: which part of the mean squared output of its matrix it mends. By that the blocks
of all matrices are one order, first blocks first, and `--memory` (`host.within`) takes as many of them as there is room for.
Wang et al., ICLR 2025 (arXiv:2410.23918). compensate=False is the paper's decomposition, with a itself instead of an AWQ-like
folding into the matrix before, which is the same; compensate=True is ours: signs are chosen in the optimal-brain sweep, and
`left` is refitted to them in the metric of the inputs. The paper orders blocks by perplexity, with one run of the model for
each of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import LinearMethod, Seen
from trimtab.core.knobs import count, flag, rate
from trimtab.core.places import Site
from trimtab.formats import Dense, SignStack
from trimtab.formats.signstack import MOST_BLOCKS, stack_spec
from trimtab.stats import Gram
from trimtab.tensors.columns import prepared
from trimtab.tensors.residual_signs import Signed, compensated, nearest
from trimtab.tensors.spd import damped


@dataclass(frozen=True)
class BitStack(LinearMethod):
    card: ClassVar = Card(
        id="bitstack",
        title="BitStack: Any-Size Compression of Large Language Models in Variable Memory Environments",
        paper="arXiv:2410.23918",
        fidelity="variant",
        beside=("gptq", "pvq", "svd_llm"),
        claims=(
            Claim(
                "beats-clipped-gptq-at-2-bit",
                "bitstack(blocks=2, rank=3)",
                "<",
                "gptq(bits=2, clip=True)",
                note="2.28 and 2.29 stored bits per weight",
            ),
            Claim(
                "signs-beat-low-rank-alone",
                "bitstack(blocks=2, rank=3)",
                "<",
                "svd_llm(keep=0.145)",
                note="2.28 and 2.29 stored bits per weight",
            ),
        ),
    )
    takes: ClassVar = (Dense,)
    gives: ClassVar = (SignStack,)
    needs: ClassVar = (Gram,)

    blocks: int = count("blocks of a matrix, each a little more than a bit per weight", 8, 1, MOST_BLOCKS)
    rank: int = count("rank of the magnitudes of a block", 3, 1)
    compensate: bool = flag("choose signs inside the optimal-brain sweep instead of to the nearest", True)
    damping: float = rate("added to the gram, as a fraction of its mean diagonal", 0.01)

    def promises(self, site: Site, spec: Mapping[str, Any]) -> dict[str, Any]:
        return stack_spec(site.shape, self.blocks, min(self.rank, *site.shape))

    def solve(self, weight: Dense, seen: Seen, site: Site) -> SignStack:
        gram, block = seen[Gram], self._by_block(seen, min(self.rank, *site.shape))
        left_over = weight.dense()
        made, errors = list[Signed](), [_squared(left_over, gram)]
        for _ in range(self.blocks):
            made.append(block(left_over))
            left_over = left_over - made[-1].dense()
            errors.append(_squared(left_over, gram))
        worth = -torch.tensor(errors, dtype=torch.float64).diff() / (errors[0] or 1.0)
        negative, left, right = (torch.stack([getattr(b, name) for b in made]) for name in ("negative", "left", "right"))
        return SignStack(negative, left, right, worth.float().to(negative.device))

    def _by_block(self, seen: Seen, rank: int) -> Any:
        """What makes a block of a matrix [out, in]."""
        if not self.compensate or not bool(seen[Gram].any()):
            return partial(nearest, rank=rank, loudness=_loudness(seen[Gram], self.damping))
        metric, order, upper, used = seen.once((BitStack, self.damping), partial(self._prepared, seen[Gram]))
        seen.note("damping", used)
        return partial(compensated, rank=rank, gram=metric, order=order, upper=upper)

    def _prepared(self, gram: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
        order, upper, used = prepared(gram, True, self.damping)
        return damped(gram, used).float(), order, upper, used


def _loudness(gram: Tensor, damping: float) -> Tensor:
    """[in] the root mean square of the inputs, raised where they are silent; 1 where all are."""
    energy = damped(gram, damping).diagonal()
    return torch.where(energy > 0, energy.sqrt(), 1.0).float()


def _squared(weight: Tensor, gram: Tensor) -> float:
    """The mean squared output of weight [out, in]."""
    return float(((weight @ gram) * weight).sum(dtype=torch.float64))

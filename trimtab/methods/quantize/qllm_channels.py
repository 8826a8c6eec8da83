"""QLLM channels: loud inputs are split into quieter ones, and as many of the others merge, before anything is rounded.

    split:  T_i = max(1, ceil(max|x_i| / threshold)),  x_i -> T_i times x_i / T_i, each with column w_i        (exact)
    merge:  (x_i + x_j) / 2 with column w_i + w_j, where sum over tokens, outputs of [(w_i - w_j) (x_i - x_j) / 2]^2 is least

until there are as many channels as before: even channels look for a partner among odd ones. Thresholds are tried from the
loudest channel down, as long as at most `share` of the channels merge, and the one is taken that has the least

    E|(W - Q(W') M) x|^2 + s^2 / 12 |Q(W')|^2,   M: split and merge, W': the new columns, s = max|M x| / (2^(input_bits - 1) - 1).

Liu et al., ICLR 2024 (arXiv:2310.08041), steps 1 to 3; `qllm` behind it rounds and learns. Not as published: every matrix
has channels of its own, where there matrices with one input share them; outputs are compared matrix by matrix; the rounding of
inputs in that comparison is noise of the size that it has at the loudest token (reconstructed). What is chosen lies in the file
as two lists of numbers and is applied to the inputs.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import LinearMethod, Seen
from trimtab.core.knobs import count, rate
from trimtab.core.places import Site
from trimtab.formats import Chain, Dense, Reassembly
from trimtab.formats.activations import check_inputs
from trimtab.stats import AbsMax, Gram
from trimtab.tensors.reassembly import copies, merge_costs, merges, reassembled
from trimtab.tensors.rounding import fit


@dataclass(frozen=True)
class QllmChannels(LinearMethod):
    card: ClassVar = Card(
        id="qllm_channels",
        title="QLLM: Accurate and Efficient Low-Bitwidth Quantization for Large Language Models",
        paper="arXiv:2310.08041",
        fidelity="variant",
        beside=("qllm", "smoothquant", "comet"),
        claims=(
            Claim(
                "helps-where-channels-stand-out",
                "qllm_channels -> qllm(epochs=0)",
                "<",
                "qllm(epochs=0)",
                note="both rounded to nearest; two lists of whole numbers for every matrix are the price",
                model="asset:own-5m-outliers",
            ),
        ),
    )
    needs: ClassVar = (Gram, AbsMax)
    takes: ClassVar = (Dense,)
    gives: ClassVar = (Chain,)

    to_bits: int = count("bits per code of the weights that are compared", 4, 2, 8)
    input_bits: int = count("bits per activation that are compared", 4, 2, 8)
    share: float = rate("of the channels, at most so many merge into others", 0.1, high=0.5)
    thresholds: int = count("thresholds that are tried", 100)

    def fits(self, site: Site) -> None:
        check_inputs(self.card.id, site)

    def solve(self, weight: Dense, seen: Seen, site: Site) -> Chain:
        matrix, gram, loudest = weight.dense(), seen[Gram], seen[AbsMax]
        costs = seen.once((QllmChannels, site.name), lambda: merge_costs(gram, matrix))
        tried = self._candidates(costs, loudest)
        lost = [self._lost(one, matrix, gram, loudest) for one in tried]
        best = tried[min(range(len(tried)), key=lost.__getitem__)]
        seen.note("split", len(best.source) - site.shape[1])
        return Chain((Dense(best.gathered(matrix).to(weight.weight.dtype)), best))

    def _candidates(self, costs: Tensor, loudest: Tensor) -> list[Reassembly]:
        """The channels as they are first, then one for every number of merges that a threshold leads to."""
        found: dict[int, Reassembly] = {}
        top = float(loudest.max())
        for step in range(self.thresholds + 1):
            parts = copies(loudest, top * (1 - step / (self.thresholds + 1))) if top else torch.ones_like(loudest).long()
            wanted = int(parts.sum()) - len(parts)
            if wanted > min(self.share * len(parts), int((parts[::2] == 1).sum())) or not (parts[1::2] == 1).any():
                break
            if wanted not in found:
                found[wanted] = Reassembly(*reassembled(parts, merges(costs, parts == 1, wanted)))
        return list(found.values()) or [Reassembly(*(2 * (torch.arange(len(loudest), device=loudest.device),)))]

    def _lost(self, channels: Reassembly, matrix: Tensor, gram: Tensor, loudest: Tensor) -> float:
        rounded = fit(new := channels.gathered(matrix), self.to_bits).nearest(new).double()
        change = matrix.double() - rounded @ channels.dense().double()
        step = float(channels.applied(loudest).max()) / (2 ** (self.input_bits - 1) - 1)
        return float(((change @ gram.double()) * change).sum() + step**2 / 12 * rounded.square().sum())

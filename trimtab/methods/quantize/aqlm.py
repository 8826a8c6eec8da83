"""AQLM: every run of 8 inputs is a sum of entries from a few learned codebooks, chosen for the layer's output.

W[o, run] ~ scale[o] * sum_b codebook[b, code[b, o, run]];  tr(E G Eᵀ) falls in every step: codes run after run, codebooks
by conjugate gradients, scales by least squares, from residual k-means, until a round gains less than `tolerance`
(`tensors.additive`). Stored bits per weight: books * code_bits / dim, 16 per row, and 16 * books * 2^code_bits * dim for the
codebooks of every matrix: little for large matrices, 0.2 bits at 576 x 576.
Egiazarov et al., ICML 2024 (arXiv:2401.06118). Before its fine-tuning of blocks; codebooks by conjugate gradients instead of
Adam; the beam holds candidates from book to book in one run, not from run to run.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from trimtab.core.card import Card, Claim
from trimtab.core.errors import UsageError
from trimtab.core.kinds import LinearMethod, Seen
from trimtab.core.knobs import count, rate
from trimtab.core.places import Site
from trimtab.formats import Codebook, Dense
from trimtab.stats import Gram
from trimtab.tensors.additive import loss, recoded, refitted, rescaled, start
from trimtab.tensors.spd import damped


@dataclass(frozen=True)
class Aqlm(LinearMethod):
    card: ClassVar = Card(
        id="aqlm",
        title="Extreme Compression of Large Language Models via Additive Quantization",
        paper="arXiv:2401.06118",
        fidelity="variant",
        beside=("quip_sharp", "pvq", "gptq"),
        claims=(
            Claim(
                "beats-rotated-gptq-at-2-bit",
                "aqlm",
                "<",
                "quarot -> gptq(bits=2, clip=True)",
                note="2.15 and 2.29 stored bits per weight, codebooks counted",
            ),
            Claim(
                "beats-rotated-pvq-at-2-bit",
                "aqlm",
                "<",
                "quarot -> pvq(bits=2.25)",
                note="2.15 and 2.25 stored bits per weight, codebooks counted",
            ),
        ),
    )
    needs: ClassVar = (Gram,)
    takes: ClassVar = (Dense,)
    gives: ClassVar = (Codebook,)

    books: int = count("codebooks, each with a code in every run of inputs", 2, 1, 8)
    code_bits: int = count("bits per code: a codebook has 2^code_bits entries", 8, 1, 8)
    dim: int = count("inputs in a run", 8, 1, 64)
    beam: int = count("candidates kept from one codebook to the next", 4, 1, 64)
    rounds: int = count("alternations between codes, codebooks and scales, at most", 8, 0, 100)
    steps: int = count("conjugate gradients of the codebooks in a round", 10, 0, 1000)
    tolerance: float = rate("stop when a round lowers the error by less than this fraction", 0.01)
    damping: float = rate("added to the gram, as a fraction of its mean diagonal", 0.01)

    def fits(self, site: Site) -> None:
        if site.shape[1] % self.dim:
            raise UsageError(f"aqlm: needs in % dim == 0: {site.name} has in={site.shape[1]}, dim={self.dim}; use a divisor")

    def promises(self, site: Site, spec: Mapping[str, Any]) -> dict[str, Any]:
        sizes = {"books": self.books, "entries": 2**self.code_bits, "dim": self.dim, "group_size": site.shape[1]}
        return {"kind": Codebook.kind, "shape": [*site.shape], **sizes}

    def solve(self, weight: Dense, seen: Seen, site: Site) -> Codebook:
        matrix = weight.dense()
        gram = seen.once((Aqlm, self.damping), lambda: damped(seen[Gram], self.damping).float())
        if not bool(gram.any()):
            raise ArithmeticError("the gram matrix is zero: nothing was seen")
        made = start(matrix, self.books, 2**self.code_bits, self.dim)
        before = loss(matrix, gram, made)
        for done in range(self.rounds):
            made = recoded(matrix, gram, made, self.beam)
            made = rescaled(matrix, gram, refitted(matrix, gram, made, self.steps))
            now = loss(matrix, gram, made)
            seen.note("rounds", done + 1)
            if now > (1 - self.tolerance) * before:
                break
            before = now
        codebook, scale = made.codebook.half(), made.scale.half()
        if not bool(codebook.isfinite().all() & scale.isfinite().all()):
            raise ArithmeticError("a scale or codebook exceeds float16")
        return Codebook(made.codes.to(torch.uint8), codebook, scale[:, None], matrix.shape[1])

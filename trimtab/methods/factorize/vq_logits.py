"""VQ-Logits: the rows of the output head are sums of a few entries of codebooks, so that most logits need not be computed.

W[v] ~ sum_b C_b[m_b(v)],  logit_v = sum_b (C_b h)[m_b(v)] + beta_v:  d * books * entries products instead of d * vocabulary.
books=1 is the plain scheme, where all tokens of a cluster have one logit but for beta_v; more books give each token its own.
dim cuts rows into runs that share the codebooks (a product code): more codes, less codebook.
Fitted to the logits on calibration text, with S the covariance of the head's inputs h and p_v how probable a token is there:
    min over C, m of  sum_v p_v^frequency (W_v - W'_v) S (W_v - W'_v)ᵀ,   beta_v = (W_v - W'_v) mean(h)
by k-means on what the books before left over (`tensors.residual_clusters`). weighted=False clusters the rows themselves;
bias=False leaves beta out, and the second moment takes the place of S.
Shao et al., 2025 (arXiv:2505.10202), reconstructed and without its training: nothing is learned by gradients, and beta makes
mean logits right where the paper counts tokens. A head that shares the embedding's matrix gets its own: fewer products then,
but not a smaller model; a codebook of rows takes 16 * entries bits for each input, which pays for large vocabularies only.
Before steps that quantize the blocks: `vq_logits -> gptq`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.func import functional_call

from trimtab.core.card import Card, Claim
from trimtab.core.edits import Edits, SetParam, SetWeight, Untie
from trimtab.core.errors import ModelError, UsageError
from trimtab.core.kinds import ModelMethod, Seen
from trimtab.core.knobs import count, flag, rate
from trimtab.core.places import Role, Site
from trimtab.formats import Codebook
from trimtab.stats import Leaving
from trimtab.tensors.residual_clusters import fit
from trimtab.tensors.spd import cholesky

if TYPE_CHECKING:
    from trimtab.anatomy import Anatomy

AT_ONCE = 256  # tokens whose logits are held together


@dataclass(frozen=True)
class VqLogits(ModelMethod):
    card: ClassVar = Card(
        id="vq_logits",
        title="VQ-Logits: Compressing the Output Bottleneck of Large Language Models via Vector Quantized Logits",
        paper="arXiv:2505.10202",
        fidelity="reconstructed",
        beside=("svd", "rtn"),
        claims=(
            Claim(
                "bias-helps",
                "vq_logits",
                "<",
                "vq_logits(bias=False)",
                note="without one the tokens of a cluster are tied; published: 4 % more perplexity with 99 % fewer parameters",
            ),
            Claim(
                "beats-clusters-of-rows",
                "vq_logits",
                "<",
                "vq_logits(weighted=False)",
                note="the same codebooks and codes to the bit, fitted to the rows of the head as the paper starts",
            ),
        ),
    )
    unties: ClassVar = True

    books: int = count("codebooks whose entries are added up", 8, 1, 64)
    entries: int = count("entries of a codebook, at most", 256, 2, 256)
    dim: int = count("inputs that an entry covers; 0 = all of them", 0, 0)
    bias: bool = flag("a logit of its own for each token, which makes up for the mean error", True)
    weighted: bool = flag("fit the logits on calibration text instead of the rows", True)
    frequency: float = rate("how far tokens count by their probability on calibration text; 0 = all the same", 0.0)
    rounds: int = count("rounds of k-means for each book, and a quarter as many for all of them together", 12)
    damping: float = rate("added to the moments of the head's inputs, as a fraction of their mean diagonal", 0.01)

    @property
    def needs(self) -> tuple[type, ...]:  # type: ignore[override]
        return (Leaving,) if self.weighted or self.bias else ()

    def rewrite(self, anatomy: "Anatomy", seen: Seen) -> Edits:
        head = next(site for site in anatomy.sites if site.role is Role.HEAD)
        dim = self.dim or head.shape[1]
        if head.shape[1] % dim:
            raise UsageError(f"vq_logits: dim={dim} does not divide the {head.shape[1]} inputs of {head.name}; use a divisor")
        matrix, bias = anatomy.weight(head).dense(), anatomy.bias(head)
        inputs = _inputs(anatomy, head, seen[Leaving][-1]) if self.needs else matrix.new_zeros(1, head.shape[1])
        mean = inputs.mean(0)
        weight, factor = torch.ones(len(matrix), device=matrix.device), torch.eye(dim, device=matrix.device)
        if self.weighted:
            if self.frequency:
                weight = _probability(matrix, bias, inputs) ** self.frequency
            factor, used = _factor(inputs - mean if self.bias else inputs, dim, self.damping)
            seen.note("damping", used)
        made = self._quantized(matrix, weight, factor)
        edits: Edits = [Untie()] if anatomy.tied else []
        edits.append(SetWeight(head, made))
        if self.bias:
            beta = (matrix - made.dense()) @ mean
            edits.append(SetParam(f"{head.path}.bias", beta if bias is None else beta + bias.float()))
        seen.note("head_bits", made.bits)
        return edits

    def _quantized(self, matrix: Tensor, weight: Tensor, factor: Tensor) -> Codebook:
        """matrix [vocabulary, in]; errors count by weight [vocabulary] and, as rows, times factor [dim, dim]."""
        points = matrix.view(-1, len(factor)) @ factor
        each = weight.repeat_interleave(len(points) // len(matrix))
        entries = min(self.entries, len(points))
        codes, centres = fit(points, each, self.books, entries, self.rounds, -(-self.rounds // 4))
        book = torch.linalg.solve_triangular(factor, centres, upper=False, left=False)
        return Codebook(codes.view(self.books, len(matrix), -1).to(torch.uint8), book.half())


def _inputs(anatomy: "Anatomy", head: Site, leaving: Tensor) -> Tensor:
    """[tokens, in] float32: what the head is given. leaving: what leaves the last block, of any size. Raises `ModelError`."""
    norm = next((norm for norm in anatomy.norms() if head in norm.feeds), None)
    if norm is None:
        raise ModelError(
            f"vq_logits: {head.name} reads no norm, so what it is given is not known; use weighted=false, bias=false"
        )
    module = anatomy.model.get_submodule(norm.path)
    parameters = {name: value.detach().float() for name, value in module.named_parameters()}
    shown: Tensor = functional_call(module, parameters, (leaving.to(next(iter(parameters.values())).device).float(),))
    return shown


def _probability(matrix: Tensor, bias: Tensor | None, inputs: Tensor) -> Tensor:
    """[vocabulary]: how probable each token is after these inputs, on average."""
    total = torch.zeros(len(matrix), device=matrix.device)
    for some in torch.split(inputs, AT_ONCE):
        logits = some @ matrix.T
        total += (logits if bias is None else logits + bias.float()).softmax(-1).sum(0)
    return total / len(inputs)


def _factor(inputs: Tensor, dim: int, damping: float) -> tuple[Tensor, float]:
    """L [dim, dim] float32 with L Lᵀ the moment of inputs [tokens, in], runs of `dim` taken together; the damping used."""
    runs = inputs.reshape(-1, dim)
    factor, used = cholesky(runs.T @ runs / len(runs), damping)
    return factor.float(), used

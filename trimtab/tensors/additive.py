"""Sums of codebook entries that change a layer's output least: codes, codebooks and scales in turn, none of them ever worse.

W[o, v] ~ scale[o] * sum_b codebook[b, codes[b, o, v]],  v a run of `dim` inputs. What is minimized is  tr(E G Eᵀ),  E the error
and G the gram. Given the other runs it is a quadratic form in one run, so codes are chosen run after run, book after book
(iterated conditional modes), a few candidates kept from one book to the next. Given the codes it is quadratic in all
codebooks together, and in each row's scale.  (Babenko & Lempitsky 2014; for language models Egiazarov et al., 2024.)
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trimtab.tensors.clusters import kmeans

MOST_POINTS = 16384  # that the first centres are fitted to
ROUNDS = 10  # of k-means
FLAT = 1e-4  # curvature, in units of the diagonal's, below which a direction is only rounding errors
SPENT = 1e-6  # of the first squared gradient: what is left has no digits any more


@dataclass(frozen=True)
class Additive:
    """codes [books, out, runs] int64, codebook [books, entries, dim], scale [out]; float32."""

    codes: Tensor
    codebook: Tensor
    scale: Tensor

    def sums(self) -> Tensor:
        """[out, in] before the scale."""
        parts = [book[codes] for book, codes in zip(self.codebook, self.codes, strict=True)]
        return torch.stack(parts).sum(0).flatten(1)

    def values(self) -> Tensor:
        """[out, in]."""
        return self.scale[:, None] * self.sums()


def loss(weight: Tensor, gram: Tensor, made: Additive) -> float:
    """tr(E G Eᵀ) of weight [out, in]."""
    left = weight - made.values()
    return float(((left @ gram) * left).sum(dtype=torch.float64))


def start(weight: Tensor, books: int, entries: int, dim: int) -> Additive:
    """Residual k-means on rows of root mean square 1, without a gram. entries that there are too few runs for are zero."""
    scale = weight.square().mean(1).sqrt()
    left = (weight / _divisor(scale)[:, None]).reshape(-1, dim)
    made, codes = [], []
    for _ in range(books):
        some = left[torch.linspace(0, len(left) - 1, min(len(left), MOST_POINTS), device=left.device).long()]
        labels = kmeans(some, entries, ROUNDS)
        sums = some.new_zeros(entries, dim).index_add_(0, labels, some)
        book = sums / torch.bincount(labels, minlength=entries).clamp(min=1)[:, None]
        chosen = (book.square().sum(1) - 2 * left @ book.T).argmin(1)
        left = left - book[chosen]
        made.append(book)
        codes.append(chosen.view(len(weight), -1))
    return Additive(torch.stack(codes), torch.stack(made), scale)


def recoded(weight: Tensor, gram: Tensor, made: Additive, beam: int) -> Additive:
    """One pass over all runs from left to right, all rows at once. beam: candidates kept from one book to the next."""
    dim, codes = made.codebook.shape[2], made.codes.clone()
    divisor = _divisor(made.scale)[:, None]
    push = (weight - made.values()) @ gram  # [out, in], kept up to date
    for run in range(codes.shape[2]):
        here = slice(run * dim, (run + 1) * dim)
        own, before = gram[here, here], _sum(made.codebook, codes[:, :, run].T[:, None])[:, 0]
        # In units of the scale:  x G x - 2 x . aim  is what a sum x in this run costs, all others given.
        aim = push[:, here] / divisor + before @ own
        chosen = _best(made.codebook, codes[:, :, run].T, own, aim, beam)
        codes[:, :, run] = chosen.T
        change = _sum(made.codebook, chosen[:, None])[:, 0] - before
        push -= (made.scale[:, None] * change) @ gram[here]
    return replace(made, codes=codes)


def _best(codebook: Tensor, codes: Tensor, own: Tensor, aim: Tensor, beam: int) -> Tensor:
    """[out, books]: codes that cost no more than those given, [out, books], for aim [out, dim] and own [dim, dim]."""
    kept = codes[:, None]  # [out, candidates, books]
    for book, entries in enumerate(codebook):
        others = _sum(codebook, kept) - entries[kept[..., book]]  # [out, candidates, dim]
        base = ((others @ own - 2 * aim[:, None]) * others).sum(-1, keepdim=True)
        each = ((entries @ own) * entries).sum(1)
        cost = base + each + 2 * (others @ own - aim[:, None]) @ entries.T  # [out, candidates, entries]
        flat = cost.flatten(1)
        last = book == len(codebook) - 1
        width = 1 if last else min(beam, flat.shape[1])
        best = flat.argmin(1, keepdim=True) if width == 1 else flat.topk(width, largest=False).indices
        kept = kept.gather(1, (best // len(entries))[..., None].expand(-1, -1, kept.shape[2])).clone()
        kept[..., book] = best % len(entries)
    return kept[:, 0]


def _sum(codebook: Tensor, codes: Tensor) -> Tensor:
    """[..., dim] for codes [..., books]."""
    return torch.stack([book[codes[..., b]] for b, book in enumerate(codebook)]).sum(0)


def refitted(weight: Tensor, gram: Tensor, made: Additive, steps: int) -> Additive:
    """The codebooks after some steps of conjugate gradients with a diagonal preconditioner; entries without use stay."""
    energy = gram.diagonal().view(1, -1, made.codebook.shape[2]).expand(len(weight), -1, -1)
    diagonal = _gathered(made, energy * made.scale.square()[:, None, None])
    precondition = torch.where(diagonal > 0, 1 / diagonal.clamp(min=1e-30), 0.0)
    book = made.codebook
    left = _pulled(made, (weight - made.values()) @ gram)
    direction = precondition * left
    first = slope = _dot(direction, left)
    for _ in range(steps):
        along = _pulled(made, replace(made, codebook=direction).values() @ gram)
        curvature = _dot(direction, along)
        # Books can be shifted against each other at no cost: there rounding errors would decide.
        if slope <= SPENT * first or curvature <= FLAT * _dot(direction, diagonal * direction):
            break
        book, left = book + slope / curvature * direction, left - slope / curvature * along
        before, slope = slope, _dot(precondition * left, left)
        direction = precondition * left + slope / before * direction
    better = replace(made, codebook=book)
    return better if loss(weight, gram, better) < loss(weight, gram, made) else made


def _dot(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum(dtype=torch.float64))


def _pulled(made: Additive, matrix: Tensor) -> Tensor:
    """The transpose of `values` as a function of the codebook: [books, entries, dim] from [out, in]."""
    return _gathered(made, (made.scale[:, None] * matrix).view(len(matrix), -1, made.codebook.shape[2]))


def _gathered(made: Additive, runs: Tensor) -> Tensor:
    """[books, entries, dim]: the sum of what lies at each entry's places. runs [out, runs, dim]."""
    flat, codes = runs.reshape(-1, runs.shape[2]), made.codes.flatten(1)
    return torch.stack([torch.zeros_like(made.codebook[0]).index_add_(0, places, flat) for places in codes])


def rescaled(weight: Tensor, gram: Tensor, made: Additive) -> Additive:
    """Every row's scale is the best for its sums; rows whose sums are zero keep theirs."""
    sums = made.sums()
    pushed = sums @ gram
    along, own = (pushed * weight).sum(1), (pushed * sums).sum(1)
    return replace(made, scale=torch.where(own > 0, along / own.clamp(min=1e-30), made.scale))


def _divisor(scale: Tensor) -> Tensor:
    """The same, 1 for a row of zeros."""
    return torch.where(scale != 0, scale, 1.0)

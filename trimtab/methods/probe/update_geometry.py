"""Update geometry: how much of a block's update is a function of the token alone.

With x what enters a block and u = y - x what it adds, a map of a restricted class is fitted around every token from its
nearest neighbours (cosine) in other windows: t = C x with C scalar, diagonal, of rank `rank` (on the main directions of the
neighbours), or one linear map for all tokens. r = u - t is what is left for context to explain. Energy sum |r|^2 / sum |u|^2,
cos(u, t), cos(u, r); and the functional test: y is replaced by x + t at some tokens in this block only, and KL of the
predictions there is ranked against |r| (Spearman).
arXiv:2604.02459; the details of the fit are reconstructed. Half of the windows fit and the others judge, since neighbours of
the same window flatter. The first token is left out; "first too" tells what it would have done. Everything is measured on
updates: y itself contains x.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from trimtab.core.card import Card, Claim
from trimtab.core.errors import DataError
from trimtab.core.kinds import Finding, ProbeMethod, Subject
from trimtab.core.knobs import choice, count, number
from trimtab.tensors.divergence import kl, spread_positions
from trimtab.tensors.spd import cholesky

CLASSES = ("scalar", "diagonal", "low_rank", "linear")
TINY = 1e-300


@dataclass(frozen=True)
class Known:
    """Tokens that maps are fitted on: what entered and what was added, [tokens, width] float64 each."""

    x: Tensor
    u: Tensor


@dataclass(frozen=True)
class UpdateGeometry(ProbeMethod):
    card: ClassVar = Card(
        id="update_geometry",
        title="On the Geometric Structure of Layer Updates in Deep Language Models",
        paper="arXiv:2604.02459",
        fidelity="reconstructed",
        beside=("depth_efficiency", "shortgpt"),
        claims=(
            Claim(
                "updates-follow-the-token",
                "update_geometry: cos(u,t)",
                ">",
                "update_geometry: cos(u,r)",
                metric="finding",
                published="close to 1 against far less",
            ),
            Claim(
                "updates-are-nearly-tokenwise",
                "update_geometry: cos(u,t)",
                ">",
                "0.9",
                metric="finding",
                note="how near to 1 it would have to be in a small model",
            ),
            Claim(
                "what-is-left-is-what-matters",
                "update_geometry: Spearman",
                ">",
                "0.5",
                metric="finding",
                published="above 0.7 for most layers, up to 0.95 in larger models",
                note="weaker than published, as the model is small",
            ),
        ),
    )

    tokenwise: str = choice("the class of maps that is put in the block's place", "low_rank", CLASSES)
    neighbours: int = count("nearest tokens that a local map is fitted on", 64, 2)
    rank: int = count("rank of the low-rank maps", 16)
    damping: float = number("ridge, as a fraction of the mean diagonal", 0.1, 0.0, 1.0)
    positions: int = count("tokens per window that are judged", 128, 2)

    def measure(self, subject: Subject) -> list[Finding]:
        if subject.windows < 2:
            raise DataError("update_geometry fits on half of the windows and judges on the others; give at least 2 windows")
        middle = (subject.windows + 1) // 2
        fitted, judged = range(middle), range(middle, subject.windows)
        at = spread_positions(len(subject.hidden(0, 0)), self.positions)
        rows = []
        for block in subject.blocks():
            known, all_known = _known(subject, block, fitted, 1), _known(subject, block, fitted, 0)
            rows.append([self._look(subject, block, window, at, known, all_known) for window in judged])
        found = Finding.columns(rows, self._about(len(judged) * len(at)))
        rest = found["rest"]
        found["rest"] = rest.saying(f"safest to replace by a function of the token: {rest.lowest()}; least: {rest.highest()}")
        return list(found.values())

    def _about(self, n: int) -> dict[str, tuple[str, int]]:
        energies = [*(f"energy {name}" for name in CLASSES), "energy first too"]
        cosines = ("cos(u,t)", "cos(u,r)", "cos(u,t) first too")
        about = {**dict.fromkeys(("rest", *energies), ("relative", n)), **dict.fromkeys(cosines, ("cosine", n))}
        return {**about, "KL": ("nats/token", n), "Spearman": ("correlation", n)}

    def _look(self, subject: Subject, block: int, window: int, at: Tensor, known: Known, all_known: Known) -> dict[str, float]:
        entering, leaving = subject.hidden(block, window), subject.hidden(block + 1, window)
        at = at.to(entering.device)
        x, y = entering[at].double(), leaving[at].double()
        maps = {name: self.update(name, x, known) for name in CLASSES}
        t, u = maps[self.tokenwise], y - x
        moved = self._moved(subject, block, window, at, x + t)
        size = (u - t).norm(dim=-1)
        first = torch.cat([at.new_zeros(1), at])
        x_all, u_all = entering[first].double(), (leaving - entering)[first].double()
        t_all = self.update(self.tokenwise, x_all, all_known)
        return {
            "rest": float((size / y.norm(dim=-1).clamp(min=TINY)).mean()),
            **{f"energy {name}": _energy(u - mapped, u) for name, mapped in maps.items()},
            "energy first too": _energy(u_all - t_all, u_all),
            "cos(u,t)": float(cosine_similarity(u, t, dim=-1).mean()),
            "cos(u,r)": float(cosine_similarity(u, u - t, dim=-1).mean()),
            "cos(u,t) first too": float(cosine_similarity(u_all, t_all, dim=-1).mean()),
            "KL": float(moved.mean()),
            "Spearman": spearman(size, moved),
        }

    def _moved(self, subject: Subject, block: int, window: int, at: Tensor, instead: Tensor) -> Tensor:
        """[tokens] KL of the predictions at `at` when these hidden states leave the block there."""
        hidden = subject.hidden(block + 1, window).clone()
        hidden[at] = instead.to(hidden.dtype)
        final = subject.hidden(len(subject.anatomy.blocks), window)[at]
        return kl(subject.logits(final), subject.logits(subject.onward(block + 1, window, hidden)[at]))

    def update(self, name: str, x: Tensor, known: Known) -> Tensor:
        """t [tokens, width] float64: what a map of the class `name` adds to x [tokens, width]."""
        if name == "linear":
            return x @ self._linear(known)
        likeness = normalize(x, dim=-1) @ normalize(known.x, dim=-1).T  # [tokens, known]
        near = likeness.topk(min(self.neighbours, len(known.x)), dim=-1).indices
        if name == "low_rank":
            return self._low_rank(x, known, near)
        product, square = known.x * known.u, known.x.square()
        if name == "scalar":
            along = product.sum(-1)[near].sum(-1) / (square.sum(-1)[near].sum(-1) * (1 + self.damping)).clamp(min=TINY)
            return along[:, None] * x
        chosen = torch.zeros_like(likeness).scatter_(1, near, 1.0)
        diagonal = chosen @ square
        return x * (chosen @ product) / (diagonal + self.damping * diagonal.mean(-1, keepdim=True)).clamp(min=TINY)

    def _low_rank(self, x: Tensor, known: Known, near: Tensor) -> Tensor:
        """Least squares of u on the neighbours' coordinates along their main directions, all in terms of inner products."""
        inner = torch.stack([known.x[rows] @ known.x[rows].T for rows in near])  # [tokens, near, near]
        values, vectors = torch.linalg.eigh(inner)
        values, vectors = values[:, -self.rank :], vectors[:, :, -self.rank :]
        ridge = self.damping * values.mean(-1, keepdim=True)
        inverse = torch.where(values > 1e-12 * values[:, -1:], 1 / (values + ridge).clamp(min=TINY), 0.0)
        along = torch.stack([known.x[rows] @ one for rows, one in zip(near, x, strict=True)])  # [tokens, near]
        share = (vectors * inverse[:, None]) @ (vectors.mT @ along[:, :, None])  # [tokens, near, 1]
        return torch.stack([known.u[rows].T @ one for rows, one in zip(near, share[:, :, 0], strict=True)])

    def _linear(self, known: Known) -> Tensor:
        """[width, width]: the ridge solution for all known tokens at once."""
        count = len(known.x)
        factor, _ = cholesky(known.x.T @ known.x / count, self.damping)
        return torch.cholesky_solve(known.x.T @ known.u / count, factor)


def _known(subject: Subject, block: int, windows: Sequence[int], start: int) -> Known:
    x = torch.cat([subject.hidden(block, window)[start:] for window in windows]).double()
    y = torch.cat([subject.hidden(block + 1, window)[start:] for window in windows]).double()
    return Known(x, y - x)


def _energy(part: Tensor, whole: Tensor) -> float:
    return float(part.square().sum() / whole.square().sum().clamp(min=TINY))


def spearman(one: Tensor, other: Tensor) -> float:
    """Rank correlation of two lists of numbers, equal ones sharing their ranks; 0 if one list is constant."""
    a, b = _ranks(one), _ranks(other)
    size = a.norm() * b.norm()
    return float(a @ b / size) if size > 0 else 0.0


def _ranks(values: Tensor) -> Tensor:
    """Ranks minus their mean, float64."""
    _, place, counts = torch.unique(values, return_inverse=True, return_counts=True)
    ranks: Tensor = (counts.cumsum(0) - (counts - 1) / 2)[place].double()
    return ranks - ranks.mean()

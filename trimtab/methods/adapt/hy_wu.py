"""HY-WU: a generator reads how a text begins and writes the low-rank changes of all matrices for that text alone.

The condition is the first `prefix` tokens of each row of a batch. Rank queries of each matrix look at them by attention and go
through a small network; heads that all matrices of a size share turn every result into a row of A and a column of B, and
y = W x + (alpha / r) B A x with factors of the row's own. Nobody sees the future: up to the last token of the prefix, in rows
that are shorter, and for a share `drop` of rows in training, factors are those of a learned vector in the place of the condition.
With a cache the beginning is remembered. The heads of B are zero at first.

HY-WU generates changes of an image editor from an instruction and an image. Different: a language model and its first tokens, by
a fixed random projection of its own embeddings, drawn from `key`. Filled in: a token for every rank, as there, but one layer of
attention. Left out: the penalty on the size of a change. What depends on the text cannot be merged; `settled` gives the LoRA of
one text. Where a layer is given all rows' tokens in one list, as experts are, the learned vector alone counts.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trimtab.core.card import Card, Claim
from trimtab.core.errors import UsageError
from trimtab.core.kinds import LinearWeight, Seen
from trimtab.core.knobs import count, number, rate
from trimtab.core.listening import ListeningDelta
from trimtab.core.places import Site
from trimtab.core.seeds import Seeds
from trimtab.core.trained import Chosen, RankedMethod
from trimtab.formats.deltas import LowRankDelta, device_of

Factors = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class HyWu(RankedMethod):
    needs: ClassVar = (Chosen,)
    card: ClassVar = Card(
        id="hy_wu",
        title="HY-WU: An Extensible Functional Neural Memory Framework",
        paper="arXiv:2603.07236",
        fidelity="variant",
        beside=("lora", "queryable_lora"),
        claims=(
            Claim(
                "beats-lora",
                "hy_wu(rank=8, alpha=16.0)",
                "<",
                "lora(rank=8, alpha=16.0)",
                model="asset:own-5m",
                text="asset:gsm8k-rest",
                note="adapted to asset:gsm8k; equal rank, the numbers of trained parameters differ",
            ),
        ),
    )

    alpha: float = number("the product is multiplied by alpha / rank", 32.0, low=0.001)
    prefix: int = count("tokens that a text is known by", 16, high=512)
    width: int = count("numbers in a token of the generator", 64, low=4, high=1024)
    drop: float = rate("rows that are trained without their condition", 0.1, high=0.9)
    key: int = count("what the generator is drawn from", 0, low=0)

    def attach(self, weight: LinearWeight, seen: Seen, site: Site) -> "GeneratedDelta":
        chosen, device = cast(Chosen, seen[Chosen]), device_of(weight)
        generator = seen.once("hy_wu", lambda: Generator(self, (site.shape for site in chosen)).to(device))
        query = torch.randn(self.rank, self.width, generator=seen.generator).to(device)
        # One delta stores it for all; which one must not depend on an order.
        keeps = site.name == min(site.name for site in chosen)
        return GeneratedDelta(generator, keeps, query, site.shape, self.alpha / self.rank)


class Generator(nn.Module):
    """opening: [batch, prefix, width] of what was heard last, zeros where nothing came yet; ready: [batch, length] bool of the
    tokens given now, whether the condition counts for them."""

    def __init__(self, of: HyWu, shapes: Iterable[tuple[int, int]]):
        super().__init__()
        self.prefix, self.width, self.drop, self.key = of.prefix, of.width, of.drop, of.key
        sizes, wide = list(shapes), of.width
        draw = Seeds(of.key).at("hy_wu", wide, of.prefix)

        def drawn(rows: int, columns: int, scale: float) -> nn.Parameter:
            return nn.Parameter(scale * torch.randn(rows, columns, generator=draw))

        even = wide**-0.5
        self.positions, self.absent = drawn(of.prefix, wide, 0.1), drawn(1, wide, 1.0)
        self.keys, self.values = drawn(wide, wide, even), drawn(wide, wide, even)
        self.up, self.down = drawn(2 * wide, wide, even), drawn(wide, 2 * wide, (2 * wide) ** -0.5)
        # Rows of A have about the length of LoRA's, 3 ** -0.5.
        into = {str(size): drawn(size, wide, even * (3 * size) ** -0.5) for size in sorted({inputs for _, inputs in sizes})}
        out = {str(size): nn.Parameter(torch.zeros(size, wide)) for size in sorted({out for out, _ in sizes})}
        self.into, self.out = nn.ParameterDict(into), nn.ParameterDict(out)
        self.opening: Tensor | None = None
        self.ready = torch.zeros(0, dtype=torch.bool)
        self.told = torch.zeros(0, dtype=torch.bool)

    def hear(self, embedded: Tensor, mask: Tensor, past: int) -> None:
        batch = len(embedded)
        if not past:
            self.opening = embedded.new_zeros(batch, self.prefix, self.width, dtype=self.keys.dtype)
            # As dropout draws: training says from which state.
            self.told = F.dropout(embedded.new_ones(batch), self.drop, self.training) > 0
        if self.opening is None or len(self.opening) != batch:
            raise UsageError("hy_wu goes on from a cache whose beginning it has not seen; give the whole text at once")
        count = mask.long().cumsum(1)[:, past:]  # of every token, from 1
        rows, columns = (mask[:, past:] & (count <= self.prefix)).nonzero(as_tuple=True)
        known = self._projected(embedded[rows, columns].to(self.keys.dtype))
        self.opening = self.opening.index_put((rows, count[rows, columns] - 1), known.to(self.opening.dtype))
        self.ready = (count >= self.prefix) & self.told[:, None]

    def factors(self, query: Tensor, shape: tuple[int, int], opening: Tensor | None) -> Factors:
        """left [batch, out, rank], right [batch, rank, in]; without an opening those of the learned vector, batch 1."""
        condition = self.absent[None] if opening is None else opening + self.positions
        looks = F.softmax(query @ (condition @ self.keys).mT * self.width**-0.5, -1)  # [batch, rank, tokens]
        found = query + looks @ (condition @ self.values)
        found = found + F.linear(F.gelu(F.linear(F.layer_norm(found, found.shape[-1:]), self.up)), self.down)
        found = F.layer_norm(found, found.shape[-1:])
        out, into = shape
        return (found @ self.out[str(out)].mT).mT, found @ self.into[str(into)].mT

    def _projected(self, embedded: Tensor) -> Tensor:
        """[tokens, width] of the model's embeddings, each of mean 0 and deviation 1."""
        inputs = embedded.shape[1]
        random = torch.randn(inputs, self.width, generator=Seeds(self.key).at("hy_wu", "projection", inputs))
        return F.layer_norm(embedded @ (random * inputs**-0.5).to(embedded), (self.width,))


class GeneratedDelta(ListeningDelta):
    """query [rank, width]: this matrix's own. The generator is a part of one delta only, and known to all."""

    def __init__(self, generator: Generator, keeps: bool, query: Tensor, shape: tuple[int, int], scale: float):
        super().__init__()
        self.query, self.shape, self.scale = nn.Parameter(query), shape, scale
        if keeps:
            self.generator = generator
        else:
            self.__dict__["generator"] = generator  # past nn.Module's bookkeeping

    @property
    def listener(self) -> Generator:
        return self.generator

    def forward(self, x: Tensor, product: Tensor, weight: Callable[[], Tensor]) -> Tensor:
        absent = self._product(x, self.generator.factors(self.query, self.shape, None))
        opening, ready = self.generator.opening, self.generator.ready
        if opening is None or x.ndim != 3:
            return absent
        if x.shape[:2] != ready.shape:
            raise UsageError(f"hy_wu heard {list(ready.shape)} tokens, and a layer is given {list(x.shape[:2])}")
        own = self._product(x, self.generator.factors(self.query, self.shape, opening))
        return torch.where(ready[..., None], own, absent)

    def _product(self, x: Tensor, factors: Factors) -> Tensor:
        left, right = factors
        if len(left) == 1:
            left, right = left[0], right[0]
        return self.scale * ((x @ right.mT) @ left.mT)

    @torch.no_grad()
    def settled(self, row: int = 0) -> LowRankDelta:
        """The LoRA that was generated for a row of the last forward pass. Raises `UsageError` where there was none."""
        if self.generator.opening is None:
            raise UsageError("hy_wu has heard no text yet; show the model one first")
        left, right = self.generator.factors(self.query, self.shape, self.generator.opening[row : row + 1])
        return LowRankDelta(left[0], right[0], self.scale)

    def merged(self, weight: LinearWeight) -> LinearWeight | None:
        return None

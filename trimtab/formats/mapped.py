"""What a block of matrices is for a planner: products, their stored bits, and how many of their inputs survive."""

from collections.abc import Iterator, Mapping

from trimtab.core.kinds import LinearWeight
from trimtab.core.mapping import Block, Product
from trimtab.core.places import Role, Site
from trimtab.formats.forward import leaves
from trimtab.formats.nm import NM

ASIDE = 5  # rotary embedding, softmax, activation of the MLP, and two sums with the stream


def products(name: str, weight: LinearWeight) -> Iterator[Product]:
    """One for every matrix that a weight multiplies by; of a composed one their bits make up for what lies between them."""
    parts = list(leaves(weight))
    between = weight.bits * weight.shape[0] * weight.shape[1] / sum(p.bits * p.shape[0] * p.shape[1] for p in parts)
    for part in parts:
        out, in_ = part.shape
        pattern = (part.n, part.m) if isinstance(part, NM) else (1, 1)
        yield Product(name, out, in_, part.bits * between, pattern)


def mapped(weights: Mapping[Site, LinearWeight], norms: int, width: int) -> Block:
    """A decoder block. weights: its matrices in order; width: of the residual stream.

    Experts are planned as if every token went to all of them, which is the most that it can cost.
    """
    query = next((site.shape[1] for site in weights if site.role is Role.O), 0)
    key = next((site.shape[0] for site in weights if site.role is Role.K), query)
    fused = next((site.shape[0] for site in weights if site.role is Role.QKV), None)
    found = tuple(product for site, weight in weights.items() for product in products(site.name, weight))
    return Block(found, query, key if fused is None else (fused - query) // 2, norms + ASIDE, width)

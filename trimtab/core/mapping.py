"""What a model would cost on a described accelerator, operation by operation, and for which lengths to compile it.

The mapping flow of FlightLLM (Zeng et al., FPGA 2024, arXiv:2401.03868) as far as it is arithmetic:

    chain:   m inputs of a row, n of which survive, take ceil(n / lanes) cycles; such groups are dealt to the chains in turn
    time:    of an operation the larger of computing and moving, and a latency
    fused:   norms, activations, rotary embeddings and residuals happen on the way of a product, and what fits stays on chip
    buckets: instructions are made for some lengths only; a prompt is padded to the next one, and the buckets are those that
             waste least

All of it is simulated, and bounded from below by `bound`, the time that reading the weights and multiplying takes at the
peak rates. What is left out: contention, refreshes, control, thermal limits; so a device will be slower.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil

from trimtab.core.accelerator import Accelerator

ACTIVATION = 1  # bytes of an activation, and of a key or value
DENSE = (1, 1)


@dataclass(frozen=True)
class Product:
    """A matrix [out, in] of which `pattern` (n, m) says that n of every m inputs survive. bits: stored ones per weight."""

    name: str
    out: int
    in_: int
    bits: float
    pattern: tuple[int, int] = DENSE

    @property
    def bytes(self) -> float:
        return self.out * self.in_ * self.bits / 8


@dataclass(frozen=True)
class Block:
    """Products in order, and the attention between them: queries and keys of so many channels, all heads together.

    aside: operations that are no products, norms and the like. width: channels that each of these reads and writes.
    """

    products: tuple[Product, ...]
    query_width: int
    key_width: int
    aside: int
    width: int


@dataclass(frozen=True)
class Cost:
    """seconds, joules and bytes moved; `compute` of the seconds multiplying alone would take, `bound` is the least time."""

    seconds: float = 0.0
    joules: float = 0.0
    bytes: float = 0.0
    compute: float = 0.0
    bound: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


def chain_cycles(groups: int, survivors: int, chains: int, lanes: int) -> int:
    """Cycles until so many groups are done, each with so many survivors."""
    return ceil(groups / chains) * ceil(survivors / lanes)


def simulated_cycles(keep: Sequence[Sequence[bool]], group: int, chains: int, lanes: int) -> int:
    """The same counted cycle by cycle, for any mask [rows, in]: the specification of `chain_cycles`.

    In a cycle a chain takes at most `lanes` survivors of its group; all chains are given their next group when all are done.
    Groups without survivors are skipped.
    """
    counts = [sum(row[at : at + group]) for row in keep for at in range(0, len(row), group)]
    waiting, cycles = [count for count in counts if count], 0
    while waiting:
        taken, waiting = waiting[:chains], waiting[chains:]
        while any(count > 0 for count in taken):
            taken = [count - lanes for count in taken]
            cycles += 1
    return cycles


def block_cost(block: Block, device: Accelerator, tokens: int, context: int, fused: bool) -> Cost:
    """One block for `tokens` new tokens, of which the last sees `context`. fused: see the module."""
    on_chip = fused and tokens * block.width * ACTIVATION <= device.on_chip_mb * 1e6
    moved = [0.0 if on_chip else tokens * (p.in_ + p.out) * ACTIVATION for p in block.products]
    total = Cost()
    for product, activations in zip(block.products, moved, strict=True):
        total += _product(product, device, tokens, activations)
    total += _attention(block, device, tokens, context, on_chip)
    if fused:
        return total
    aside = _operation(device, 0.0, 0.0, 2.0 * tokens * block.width * ACTIVATION)
    return total + _times(aside, block.aside)


def _product(product: Product, device: Accelerator, tokens: int, activations: float) -> Cost:
    survivors, group = product.pattern if product.pattern != DENSE else (device.lanes, device.lanes)
    groups = tokens * product.out * ceil(product.in_ / group)
    cycles = chain_cycles(groups, survivors, device.chains, device.lanes)
    macs = tokens * product.out * product.in_ * product.pattern[0] / product.pattern[1]
    return _operation(device, cycles / (device.clock_mhz * 1e6), macs, activations, product.bytes)


def _attention(block: Block, device: Accelerator, tokens: int, context: int, on_chip: bool) -> Cost:
    """Scores and sums of values; keys and values are read once for all heads that share them, new ones are written."""
    pairs = tokens * context - tokens * (tokens - 1) // 2
    macs = 2.0 * block.query_width * pairs
    if not macs:
        return Cost()
    kept = 2.0 * block.key_width * ACTIVATION * (context + tokens)
    activations = 0.0 if on_chip else 2.0 * tokens * block.query_width * ACTIVATION
    return _operation(device, macs / device.macs_per_second, macs, activations, kept)


def _operation(device: Accelerator, computing: float, macs: float, activations: float, stored: float = 0.0) -> Cost:
    """activations: bytes between operations, which lie in the second memory where they are few; stored: weights, keys, values."""
    slow = activations < device.small_bytes
    reading = activations / ((device.small_gb_per_s if slow else device.gb_per_s) * 1e9) + stored / (device.gb_per_s * 1e9)
    seconds = max(computing, reading) + device.latency_us * 1e-6
    moved = activations + stored
    joules = (macs * device.pj_per_mac + moved * device.pj_per_byte) * 1e-12 + device.idle_watts * seconds
    bound = max(macs / device.macs_per_second, stored / (device.gb_per_s * 1e9))
    return Cost(seconds, joules, moved, computing, bound)


def _times(cost: Cost, count: int) -> Cost:
    return Cost(*(value * count for value in vars(cost).values()))


def model_cost(blocks: Sequence[Block], head: Product, device: Accelerator, tokens: int, context: int, fused: bool) -> Cost:
    """All blocks and the head, which speaks for the last token only."""
    total = _product(head, device, 1, 0.0 if fused else (head.in_ + head.out) * ACTIVATION)
    for block in blocks:
        total += block_cost(block, device, tokens, context, fused)
    return total


def as_if(block: Block, bits: float | None = None, pattern: tuple[int, int] | None = None) -> Block:
    """The block with other bits, or another pattern, for all its products."""
    changed = {**({} if bits is None else {"bits": bits}), **({} if pattern is None else {"pattern": pattern})}
    return replace(block, products=tuple(replace(product, **changed) for product in block.products))  # type: ignore[arg-type]


def buckets(lengths: Sequence[int], cost: Callable[[int], float], count: int) -> list[int]:
    """At most `count` of the ascending lengths, the last one included, so that padding each length to the next chosen one costs
    least in sum. Exact, by dynamic programming over the lengths. Raises ValueError for no lengths or no buckets."""
    if not lengths or count < 1:
        raise ValueError(f"{count} buckets for {len(lengths)} lengths")
    paid = [cost(length) for length in lengths]
    best = [paid[end] * (end + 1) for end in range(len(lengths))]  # of the lengths up to `end`, with one bucket
    before: list[list[int]] = []
    for _ in range(1, min(count, len(lengths))):
        start = [min(range(end + 1), key=partial(_joined, best, paid, end)) for end in range(len(lengths))]
        best = [_joined(best, paid, end, start[end]) for end in range(len(lengths))]
        before.append(start)
    chosen, end = [lengths[-1]], len(lengths) - 1
    for start in reversed(before):
        if start[end] == 0:
            break
        end = start[end] - 1
        chosen.append(lengths[end])
    return chosen[::-1]


def _joined(best: Sequence[float], paid: Sequence[float], end: int, start: int) -> float:
    """What the lengths up to `end` cost when those from `start` on share a bucket."""
    return (best[start - 1] if start else 0.0) + paid[end] * (end - start + 1)


def padded(lengths: Sequence[int], chosen: Sequence[int], cost: Callable[[int], float]) -> float:
    """The sum of what all lengths cost when each is padded to the next chosen one."""
    return sum(cost(next(bucket for bucket in chosen if bucket >= length)) for length in lengths)

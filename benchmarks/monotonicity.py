"""Does a smaller sum of layer errors mean a better model? Sets of dropped blocks of a real model for which it does not.

    python benchmarks/monotonicity.py             64 sets of 6 blocks, minutes on one core
    python benchmarks/monotonicity.py --quick     12 sets, two windows; nothing is kept

The error of a block is what the model's answers lose when it alone is left out, mean over tokens of KL(whole || without it).
Random sets of blocks are left out; a set's sum of errors is set beside what it really loses. The two sets that contradict each
other most, smaller sum and larger loss, are chosen on some windows and judged on others, their own sums included: what is
reported was not picked by what it is reported for. Searches that add up errors rest on this order (Sieberling et al., 2024,
arXiv:2410.14649, section 3); `evopress` and `evopress_blocks` do not. Result: `monotonicity.json`.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations
from typing import Any

from once import once, options

MODEL, JUDGED, LENGTH = "asset:smollm2-135m", "asset:boolq", 256
Dropped = tuple[int, ...]


def main() -> None:
    once(__file__, arguments(), measured, told, kept=False)


def measured(given: argparse.Namespace) -> dict[str, Any]:
    import torch

    from trimtab.anatomy import Anatomy
    from trimtab.core.seeds import Seeds
    from trimtab.data.windows import evaluation_windows
    from trimtab.host.checkpoint import load
    from trimtab.host.model_assets import resolve_model
    from trimtab.host.provenance import provenance

    torch.set_num_threads(given.threads)
    model, tokenizer = load(resolve_model(MODEL))
    blocks = Anatomy.of(model).blocks
    draw = Seeds(given.seed).at("sets")
    sets = [tuple(sorted(torch.randperm(len(blocks), generator=draw)[: given.drop].tolist())) for _ in range(given.sets)]
    ids = evaluation_windows(JUDGED, tokenizer, given.windows + given.judged, LENGTH, given.seed)
    choosing, judging = ids[: given.windows], ids[given.windows :]
    alone = [mean(losses) for losses in lost(model, blocks, [(block,) for block in range(len(blocks))], choosing)]
    real = [mean(losses) for losses in lost(model, blocks, sets, choosing)]
    sums = [sum(alone[block] for block in dropped) for dropped in sets]
    best, worst = contradiction(sums, real)
    return {
        **{"model": MODEL, "text": JUDGED, "length": LENGTH, "windows": given.windows, "seed": given.seed, **provenance()},
        **{"alone": alone, "sets": sets, "sums": sums, "lost": real, "inverted": inverted(sums, real)},
        "contradiction": [judged(model, blocks, sets[which], judging) for which in (best, worst)],
    }


def judged(model: Any, blocks: Sequence[Any], dropped: Dropped, windows: Any) -> dict[str, Any]:
    """A set on windows that it was not chosen by. lost: by window; sum: of its blocks' errors, by window."""
    apart = list(lost(model, blocks, [(block,) for block in dropped], windows))
    together = next(iter(lost(model, blocks, [dropped], windows)))
    return {"dropped": dropped, "sum": [sum(column) for column in zip(*apart, strict=True)], "lost": together}


def lost(model: Any, blocks: Sequence[Any], sets: Sequence[Dropped], windows: Any) -> Iterator[list[float]]:
    """Of every set, by window: mean over tokens of KL(whole model || without the set's blocks), nats."""
    import torch

    from trimtab.tensors.products import fast_products

    def said(window: Any) -> Any:
        return model(input_ids=window[None], use_cache=False).logits[0].log_softmax(-1)

    with torch.inference_mode(), fast_products():
        whole = [said(window) for window in windows]
        for dropped in sets:
            with left_out([blocks[which] for which in dropped]):
                parted = (said(window) for window in windows)
                yield [
                    float((one.exp() * (one - other)).sum(-1).double().mean()) for one, other in zip(whole, parted, strict=True)
                ]


@contextmanager
def left_out(blocks: Sequence[Any]) -> Iterator[None]:
    """Inside, what enters these blocks leaves them."""
    for block in blocks:
        block.forward = lambda hidden_states, *_, **__: hidden_states
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def contradiction(sums: Sequence[float], real: Sequence[float]) -> tuple[int, int]:
    """The set of the smaller sum and the larger loss, then the other one; of all such pairs the farthest apart."""
    pairs = [(a, b) for a in range(len(sums)) for b in range(len(sums)) if sums[a] < sums[b] and real[a] > real[b]]
    if not pairs:
        sys.exit("in these sets a smaller sum of errors always meant a smaller loss; try more of them, or another seed")
    return max(pairs, key=lambda pair: real[pair[0]] / real[pair[1]])


def inverted(sums: Sequence[float], real: Sequence[float]) -> float:
    """The fraction of all pairs of sets whose sums and losses are ordered differently."""
    pairs = list(combinations(range(len(sums)), 2))
    return sum((sums[a] - sums[b]) * (real[a] - real[b]) < 0 for a, b in pairs) / len(pairs)


def told(found: dict[str, Any]) -> str:
    import torch

    from trimtab.measure.paired import paired_difference

    one, other = found["contradiction"]
    rows = [
        f"| {', '.join(map(str, side['dropped']))} | {mean(side['sum']):.3f} | {mean(side['lost']):.3f} |"
        for side in (one, other)
    ]
    fewer, more = (paired_difference(*(torch.tensor([side[what]]) for side in (one, other))) for what in ("sum", "lost"))
    return "\n".join(
        [
            f"{found['inverted']:.0%} of all pairs of {len(found['sets'])} sets are ordered differently by sum and by loss",
            "| dropped | sum of errors, nats | lost, nats |\n|---|---|---|",
            *rows,
            f"the first less the second, sums: {fewer}; losses: {more}",
        ]
    )


def arguments() -> argparse.Namespace:
    parser = options(__doc__)
    parser.add_argument("--drop", type=int, default=6, help="blocks of a set")
    parser.add_argument("--sets", type=int, default=64)
    parser.add_argument("--windows", type=int, default=4, help="to choose by")
    parser.add_argument("--judged", type=int, default=16, help="windows to judge by")
    given = parser.parse_args()
    if given.quick:
        given.sets, given.windows, given.judged = 12, 2, 2
    return given


if __name__ == "__main__":
    main()

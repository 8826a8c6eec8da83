"""One-shot methods side by side at 4, 3 and 2 bits: perplexity, stored bits, seconds, peak memory.

    python benchmarks/oneshot.py                       every recipe that has no line yet
    python benchmarks/oneshot.py --bits 2 --only gptq  those whose recipe has one of these words in it
    python benchmarks/oneshot.py --quick               4 windows, nothing is kept: tries the plumbing

One process for each recipe. Lines are appended to `oneshot.jsonl`, a run that was stopped goes on, and `ONESHOT.md` is made from
the newest line of every recipe. Differences are paired over the windows, against `gptq(clip=True)` at the same bits.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gauge import Gauge
from ledger import Book, Job, Line, apart, numbers, options, row

BOOK = Book(__file__, ("recipe",))
MODEL, SHOWN, JUDGED = "asset:smollm2-135m", "asset:squad-drop", "asset:boolq"
LENGTH = 512
SAME_BITS = (
    "rtn(bits={bits})",
    "rtn(bits={bits}, clip=True)",
    "gptq(bits={bits})",
    "gptq(bits={bits}, clip=True)",
    "gptaq(bits={bits}, clip=True)",
    "rescomp(bits={bits}, clip=True)",
    "rsq(bits={bits}, clip=True)",
    "smoothquant -> gptq(bits={bits}, clip=True)",
    "awq(bits={bits}) -> awq_clip(bits={bits})",
    "awq(bits={bits}) -> gptq(bits={bits}, clip=True)",
    "d2quant(bits={bits}, clip=True) -> gptq(bits={bits}, clip=True)",
    "d2quant(bits={bits}, clip=True) -> gptaq(bits={bits}, clip=True)",
    "quarot -> gptq(bits={bits}, clip=True)",
    "quarot -> pvq(bits={bits}.25)",
    "hqq(bits={bits}, clip=True)",
    "easyquant(bits={bits})",
    "hlq(bits={bits}, group_size=192, order='energy')",
    "quip(bits={bits})",
    "quip_sharp(bits={bits})",
    "shiftaddllm(bits={bits})",
    "bitstack(blocks={bits})",
)
SOME_BITS = {
    4: ("slim_quant(bits=4)",),
    3: (
        "gptq(clip=True) by layerwise_quant(bits=3)",
        "gptq(clip=True) by shiftadd_bits(bits=3.289)",  # of 2, 3 and 4 bits
        "aqlm(books=3)",
    ),
    2: ("gptq(clip=True) by luq(bits=2.303)", "quarot -> pvq(bits=2)", "aqlm(books=2)"),
}
BASELINE = "gptq(bits={bits}, clip=True)"


def main() -> int:
    return BOOK.drive(arguments(), jobs, measured, page)


def jobs(given: argparse.Namespace) -> Iterator[Job]:
    asked = numbers(given, "windows", "judged_windows")
    for bits in given.bits:
        for recipe in [*(recipe.format(bits=bits) for recipe in SAME_BITS), *SOME_BITS[bits]]:
            if any(word in recipe for word in given.only):
                yield Job(recipe, {"bits": bits, "recipe": recipe}, asked)


def measured(
    given: argparse.Namespace,
    look: Callable[[Any], Line] = lambda model: {},
    made: Callable[[argparse.Namespace], tuple[Any, Any, Line]] | None = None,
) -> Line:
    """One recipe on the model. look: at what came out, for more to be noted. made: instead of `compressed`."""
    import torch

    from trimtab.data.windows import evaluation_windows
    from trimtab.host.model_assets import resolve_model
    from trimtab.host.provenance import provenance
    from trimtab.host.source import history
    from trimtab.measure.perplexity import perplexity, token_losses
    from trimtab.measure.size import bits_per_weight
    from trimtab.tensors.products import fast_products

    torch.set_num_threads(given.threads)
    folder = resolve_model(MODEL)
    model, tokenizer, cost = (made or compressed)(given)
    with fast_products():
        losses = token_losses(model, evaluation_windows(JUDGED, tokenizer, given.judged_windows, LENGTH, 0))
    found = perplexity(losses)
    return {
        "stored_bits": bits_per_weight(model)[0].value,
        "perplexity": found.value,
        "stderr": found.stderr,
        "losses": losses.mean(1).tolist(),
        **cost,
        **look(model),
        "setting": {"model": MODEL, "history": history(Path(folder)), "shown": SHOWN, "judged": JUDGED, "seed": given.seed}
        | {"length": LENGTH, **numbers(given, "windows", "judged_windows", "threads", "compute")},
        **provenance(),
    }


def compressed(given: argparse.Namespace, begun: tuple[Any, Any] | None = None) -> tuple[Any, Any, Line]:
    """(the model after the recipe, which leaves it as it is if it is empty; its tokenizer; seconds and memory)

    begun: a model, which the recipe changes in place, and its tokenizer; by default they are opened.
    """
    from trimtab import Calibration, Recipe
    from trimtab.host.checkpoint import load
    from trimtab.host.compress import compress
    from trimtab.host.model_assets import resolve_model

    gauge = Gauge()
    model: Any
    model, tokenizer = begun or load(resolve_model(MODEL))
    with gauge("compress"):
        if given.one:
            shown = Calibration(SHOWN, given.windows * LENGTH, LENGTH, compute=given.compute)
            model = compress(model, Recipe.of(given.one, shown, seed=given.seed), tokenizer=tokenizer).model
    return model, tokenizer, gauge.stages["compress"]


def page(found: list[Line]) -> str:
    setting = found[0]["setting"]
    by_bits = {bits: [line for line in found if line["bits"] == bits] for bits in (4, 3, 2)}
    parts = [
        "# One-shot methods at equal bits\n",
        "Generated by `oneshot.py` from `oneshot.jsonl`, not edited by hand. "
        f"`{setting['model']}`, calibrated on {setting['windows']} x {setting['length']} tokens of `{setting['shown']}` (seed "
        f"{setting['seed']}), judged on {setting['judged_windows']} x {setting['length']} tokens of `{setting['judged']}`; ± is "
        f"the standard error over windows. {setting['threads']} threads; seconds of the call, on the wall and of the processor: "
        "with one thread, what is between them was other work. "
        f"Of the model: {setting['history']}.\n",
        *(table(bits, sorted(some, key=lambda line: line["perplexity"])) for bits, some in by_bits.items() if some),
    ]
    return "\n".join(parts)


def table(bits: int, found: list[Line]) -> str:
    baseline = next((line for line in found if line["recipe"] == BASELINE.format(bits=bits)), None)
    rows = [
        f"## {bits} bits\n",
        f"| recipe | stored bits | perplexity | against `{BASELINE.format(bits=bits)}`, nats | seconds | processor | peak MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for line in found:
        cells = (
            f"`{line['recipe']}`",
            f"{line['stored_bits']:.3f}",
            f"{line['perplexity']:.2f} ± {line['stderr']:.2f}",
            against(line, baseline),
            f"{line['seconds']:.0f}",
            f"{line['processor']:.0f}",
            f"{line['peak'] / 1e6:.0f}",
        )
        rows.append(row(cells))
    return "\n".join(rows) + "\n"


def against(line: Line, baseline: Line | None) -> str:
    """Empty where there is no other line to set it against."""
    return "" if baseline is None or line is baseline else apart([line["losses"]], [baseline["losses"]], digits=3)


def arguments() -> argparse.Namespace:
    parser = options(__doc__, "4 windows of either text")
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3, 2], choices=[2, 3, 4])
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD", help="recipes that have one of these words in them")
    parser.add_argument("--windows", type=int, default=32, help="calibration windows")
    parser.add_argument("--judged-windows", type=int, default=24)
    parser.set_defaults(compute="float32")
    given = parser.parse_args()
    if given.quick:
        given.windows = given.judged_windows = 4
    return given


if __name__ == "__main__":
    raise SystemExit(main())

"""One-shot methods side by side at 4, 3 and 2 bits: perplexity, stored bits, seconds, peak memory.

    python benchmarks/oneshot.py                       every recipe that has no line yet
    python benchmarks/oneshot.py --bits 2 --only gptq  those whose recipe has one of these words in it
    python benchmarks/oneshot.py --quick               4 windows, nothing is kept: tries the plumbing

One process for each recipe. Lines are appended to `oneshot.jsonl`, a run that was stopped goes on, and `ONESHOT.md` is made from
the newest line of every recipe. Differences are paired over the windows, against `gptq(clip=True)` at the same bits.
"""

import argparse
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ledger
from gauge import Gauge, hand_over, use_threads, versions

HERE = Path(__file__).resolve().parent
WORK = HERE.parent / "build" / "bench"
LEDGER, PAGE = HERE / "oneshot.jsonl", HERE / "ONESHOT.md"
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
    "gptq(clip=True) by shiftadd_bits(bits={bits}.289)",
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
    3: ("gptq(clip=True) by layerwise_quant(bits=3)", "aqlm(books=3)"),
    2: ("gptq(clip=True) by luq(bits=2.303)", "quarot -> pvq(bits=2)", "aqlm(books=2)"),
}
BASELINE = "gptq(bits={bits}, clip=True)"


def main() -> int:
    given = arguments()
    if given.one is not None:
        use_threads(given.threads)
        hand_over(given.result, measured(given))
        return 0
    WORK.mkdir(parents=True, exist_ok=True)
    failed = 0
    for bits in given.bits:
        for recipe in wanted(given, bits):
            print(f"{recipe} ...", file=sys.stderr)
            failed += not run(given, bits, recipe)
    if not given.quick and LEDGER.exists():
        PAGE.write_text(page(ledger.newest(LEDGER, "recipe")), encoding="utf-8")
    return 1 if failed else 0


def wanted(given: argparse.Namespace, bits: int) -> list[str]:
    """What is to be run; without --again only what has no line."""
    there = set() if given.again or given.quick else {line["recipe"] for line in ledger.newest(LEDGER, "recipe")}
    recipes = [*(recipe.format(bits=bits) for recipe in SAME_BITS), *SOME_BITS[bits]]
    return [recipe for recipe in recipes if recipe not in there and any(word in recipe for word in given.only)]


def run(given: argparse.Namespace, bits: int, recipe: str) -> bool:
    """One recipe in a process of its own; whether it came to an end."""
    numbers = ("--windows", given.windows, "--judged-windows", given.judged_windows, "--threads", given.threads)
    found = ledger.measure(__file__, recipe, numbers, WORK)
    if found is not None:
        ledger.keep(LEDGER, {"bits": bits, "recipe": recipe, **found}, given.quick)
    return found is not None


def measured(given: argparse.Namespace, look: Callable[[Any], dict[str, Any]] = lambda model: {}) -> dict[str, Any]:
    """One recipe on the model, which an empty one leaves as it is. look: at what came out, for more to be noted."""
    import torch

    from trimtab import Calibration, Recipe
    from trimtab.data.windows import evaluation_windows
    from trimtab.host.checkpoint import load
    from trimtab.host.compress import compress
    from trimtab.host.model_assets import resolve_model
    from trimtab.host.provenance import commit, machine
    from trimtab.host.source import history
    from trimtab.measure.perplexity import perplexity, token_losses
    from trimtab.measure.size import bits_per_weight
    from trimtab.tensors.products import fast_products

    torch.set_num_threads(given.threads)
    folder, gauge = resolve_model(MODEL), Gauge()
    model, tokenizer = load(folder)
    assert tokenizer is not None
    with gauge("compress"):
        if given.one:
            recipe = Recipe.of(given.one, Calibration(SHOWN, given.windows * LENGTH, LENGTH), seed=given.seed)
            model = compress(model, recipe, tokenizer=tokenizer).model
    with fast_products():
        losses = token_losses(model, evaluation_windows(JUDGED, tokenizer, given.judged_windows, LENGTH, 0))
    found = perplexity(losses)
    return {
        "stored_bits": bits_per_weight(model)[0].value,
        "perplexity": found.value,
        "stderr": found.stderr,
        "losses": losses.mean(1).tolist(),
        **gauge.stages["compress"],
        **look(model),
        "setting": {"model": MODEL, "history": history(Path(folder)), "shown": SHOWN, "judged": JUDGED, "seed": given.seed}
        | {"windows": given.windows, "judged_windows": given.judged_windows, "length": LENGTH, "threads": given.threads},
        "commit": commit(),
        "machine": machine(),
        "versions": versions("trimtab", "torch", "transformers"),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def page(found: list[dict[str, Any]]) -> str:
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


def table(bits: int, found: list[dict[str, Any]]) -> str:
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
            "" if baseline in (None, line) else against(line, baseline),
            f"{line['seconds']:.0f}",
            f"{line['processor']:.0f}",
            f"{line['peak'] / 1e6:.0f}",
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def against(line: dict[str, Any], baseline: dict[str, Any] | None) -> str:
    import torch

    from trimtab.measure.paired import paired_difference

    assert baseline is not None
    left, right = (torch.tensor([one["losses"]], dtype=torch.float64) for one in (line, baseline))
    found = paired_difference(left, right)
    return f"{found.difference:+.3f} ({found.low:+.3f} to {found.high:+.3f})"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3, 2], choices=[2, 3, 4])
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD", help="recipes that have one of these words in them")
    parser.add_argument("--again", action="store_true", help="also what has a line")
    parser.add_argument("--quick", action="store_true", help="4 windows of either text; nothing is kept")
    parser.add_argument("--windows", type=int, default=32, help="calibration windows")
    parser.add_argument("--judged-windows", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.quick:
        given.windows = given.judged_windows = 4
    return given


if __name__ == "__main__":
    raise SystemExit(main())

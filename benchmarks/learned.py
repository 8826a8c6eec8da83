"""Two bits and fewer on a real model: the best that one shot gives against codes, scales and weights that are trained.

    python benchmarks/learned.py                     every side that has no line yet
    python benchmarks/learned.py --only pv_tuning    those whose recipe has one of these words in it
    python benchmarks/learned.py --sweep             also with a third and three times of every learning rate
    python benchmarks/learned.py --seed 1            calibration windows and their order drawn anew
    python benchmarks/learned.py --quick             4 windows and 2 steps, nothing is kept: tries the plumbing

Every side is shown the same windows. What learns reads steps x 4 of them, block by block or end to end, and so the same number of
tokens; stored bits are equal within a table. One process for each line of `learned.jsonl`; a run that was stopped goes on, and
`LEARNED.md` is made from the newest line of every recipe and seed. Differences are paired over the judged windows, against the
best side of that table and seed that does not learn.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ledger
from gauge import hand_over, use_threads
from oneshot import WORK, against, measured

HERE = Path(__file__).resolve().parent
LEDGER, PAGE = HERE / "learned.jsonl", HERE / "LEARNED.md"
KEY = ("table", "recipe", "seed")
BATCH = 4  # windows of a step, which is what every method here takes by default
DECODED = 32
TABLES = {
    "two": "About 2.25 stored bits",
    "ternary": "Ternary matrices, and the model as it came",
    "block": "Learned block by block in bounded time",
}


@dataclass(frozen=True)
class Side:
    """recipe: with {rate}, {steps} and {epochs} to be filled in. rate: 0 for what does not learn."""

    table: str
    recipe: str
    rate: float = 0.0

    def recipes(self, steps: int, windows: int, sweep: bool) -> list[str]:
        factors = (1 / 3, 1.0, 3.0) if sweep and self.rate else (1.0,)
        epochs = max(1, round(steps * BATCH / windows))
        return [self.recipe.format(rate=f"{self.rate * f:.2g}", steps=steps, epochs=epochs) for f in factors]


SIDES = (
    Side("two", "gptq(bits=2, clip=True)"),
    Side("two", "quarot -> pvq(bits=2.25)"),
    Side("two", "d2quant(bits=2, clip=True) -> gptaq(bits=2, clip=True)"),
    Side("two", "quip_sharp(bits=2)"),
    Side("two", "hlq(bits=2, group_size=192, order='energy')"),
    Side("two", "omniquant(bits=2, epochs={epochs}, rate={rate})", 0.02),
    Side("two", "flexround(bits=2, epochs={epochs}, rate={rate})", 0.002),
    Side("two", "elutq(bits=2, group_size=192, epochs={epochs}, rate={rate})", 1e-4),
    Side("two", "gptq(bits=2, clip=True) -> pv_tuning(share=0.0, steps={steps}, learning_rate={rate})", 3e-4),
    Side("two", "gptq(bits=2, clip=True) -> pv_tuning(steps={steps}, learning_rate={rate})", 3e-4),
    Side("two", "hlq(bits=2, group_size=192, order='energy') -> pv_tuning(steps={steps}, learning_rate={rate})", 3e-4),
    Side("two", "aqlm(books=2) -> pv_tuning(steps={steps}, learning_rate={rate})", 3e-4),
    Side("two", "hlq(bits=2, group_size=192, order='energy') -> elutq_tuning(steps={steps}, learning_rate={rate})", 1e-3),
    Side("two", "db_llm(group_size=192, steps={steps}, learning_rate={rate})", 1e-4),
    Side("two", "edgerazor(part=0.22, group_size=192, steps={steps}, learning_rate={rate})", 5e-4),
    Side("two", "ofq(bits=2, steps={steps}, learning_rate={rate})", 2e-4),
    Side("two", "edkm(bits=2, steps={steps}, learning_rate={rate})", 5e-5),
    Side("ternary", ""),
    Side("ternary", "edgerazor(group_size=192, steps={steps}, learning_rate={rate})", 5e-4),
    Side("block", "flexround(bits=2, epochs=3, rate={rate})", 0.002),
    Side("block", "elutq(bits=2, group_size=192, epochs=3, rate={rate})", 1e-4),
)


def main() -> int:
    given = arguments()
    if given.one is not None:
        use_threads(given.threads)
        hand_over(given.result, measured(given, looked_at))
        return 0
    WORK.mkdir(parents=True, exist_ok=True)
    failed = 0
    for table, recipe in wanted(given):
        print(f"{recipe or 'the model as it came'} ...", file=sys.stderr)
        failed += not run(given, table, recipe)
    if not given.quick and LEDGER.exists():
        PAGE.write_text(page(ledger.newest(LEDGER, *KEY)), encoding="utf-8")
    return 1 if failed else 0


def wanted(given: argparse.Namespace) -> list[tuple[str, str]]:
    """What is to be run; without --again only what has no line."""
    found = [] if given.again or given.quick else ledger.newest(LEDGER, *KEY)
    there = {tuple(line[name] for name in KEY) for line in found}
    every = [(side.table, recipe) for side in SIDES for recipe in side.recipes(given.steps, given.windows, given.sweep)]
    return [
        (table, recipe)
        for table, recipe in every
        if (table, recipe, given.seed) not in there and any(word in recipe for word in given.only)
    ]


def run(given: argparse.Namespace, table: str, recipe: str) -> bool:
    """One side in a process of its own; whether it came to an end."""
    numbers = ("--seed", given.seed, "--windows", given.windows, "--judged-windows", given.judged_windows)
    found = ledger.measure(__file__, recipe, (*numbers, "--threads", given.threads), WORK)
    if found is not None:
        ledger.keep(LEDGER, {"table": table, "recipe": recipe, "seed": given.seed, **found}, given.quick)
    return found is not None


def looked_at(model: Any) -> dict[str, Any]:
    """Bytes of all tensors, and how fast it decodes."""
    import torch

    from trimtab.measure.speed import decode_speed, kernels

    prompt = torch.arange(3, 19).unsqueeze(0)
    speed = decode_speed(model, prompt, DECODED)
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in model.state_dict().values()}
    return {"bytes": sum(held.values()), "decode": speed.value, "decode_stderr": speed.stderr, "kernels": kernels(model)}


def page(found: list[dict[str, Any]]) -> str:
    setting = found[0]["setting"]
    parts = [
        "# Two bits and fewer, learned\n",
        "Generated by `learned.py` from `learned.jsonl`, not edited by hand. "
        f"`{setting['model']}`, shown {setting['windows']} x {setting['length']} tokens of `{setting['shown']}`, judged on "
        f"{setting['judged_windows']} x {setting['length']} tokens of `{setting['judged']}`; ± is the standard error over "
        f"windows. {setting['threads']} threads; seconds on the wall, decoding in tokens per second after a prompt of 16. "
        f"Of the model: {setting['history']}.\n",
    ]
    for seed in sorted({line["seed"] for line in found}):
        for name, title in TABLES.items():
            here = [line for line in found if line["table"] == name and line["seed"] == seed]
            parts += [table(f"{title}, seed {seed}", sorted(here, key=lambda line: line["perplexity"]))] if here else []
    return "\n".join(parts)


def table(title: str, found: list[dict[str, Any]]) -> str:
    """Rows in order of perplexity; the first that does not learn is what the others are set against."""
    once = {side.recipe for side in SIDES if not side.rate}
    baseline = next((line for line in found if line["recipe"] in once), None)
    rows = [
        f"## {title}\n",
        "| recipe | stored bits | perplexity | against the best that does not learn, nats | seconds | peak MB | MB | decodes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for line in found:
        cells = (
            f"`{line['recipe']}`" if line["recipe"] else "as it came",
            f"{line['stored_bits']:.3f}",
            f"{line['perplexity']:.2f} ± {line['stderr']:.2f}",
            "" if baseline in (None, line) else against(line, baseline),
            f"{line['seconds']:.0f}",
            f"{line['peak'] / 1e6:.0f}",
            f"{line['bytes'] / 1e6:.0f}",
            f"{line['decode']:.1f} ± {line['decode_stderr']:.1f} ({line['kernels']})",
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD", help="recipes that have one of these words in them")
    parser.add_argument("--again", action="store_true", help="also what has a line")
    parser.add_argument("--sweep", action="store_true", help="also other learning rates")
    parser.add_argument("--quick", action="store_true", help="4 windows of either text and 2 steps; nothing is kept")
    parser.add_argument("--steps", type=int, default=100, help="steps of 4 windows that what learns may take")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--windows", type=int, default=128, help="calibration windows")
    parser.add_argument("--judged-windows", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.quick:
        given.windows = given.judged_windows = 4
        given.steps = 2
    return given


if __name__ == "__main__":
    raise SystemExit(main())

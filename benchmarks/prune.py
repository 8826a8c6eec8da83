"""A fifth to a half of a real model's parameters removed for good, as it is and after the same recovery for everyone.

    python benchmarks/prune.py                     every line that is not there yet
    python benchmarks/prune.py --only loraprune    those whose recipe has one of these words in it
    python benchmarks/prune.py --levels 35 50      these fractions
    python benchmarks/prune.py --seed 1            calibration windows and their order drawn anew
    python benchmarks/prune.py --quick             4 windows, 2 steps, one rate, one level; nothing is kept

The budget of recovery is `--steps` steps of 4 windows: `recover` after what cuts in one shot, the method's own training where
it learns, half of each where only gates are learned. All take the same three learning rates, and the best counts. Models are
saved, and decoding is what `trimtab bench` says of the folder. One process for each line of `prune.jsonl`; a run that was
stopped goes on, and `PRUNE.md` is made from the newest line of every recipe and seed. Widths of the stream come in steps of 72
in this model, and blocks are whole: what is removed is said beside every recipe. Differences are paired, against the best of
`llm_pruner`.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ledger
from gauge import hand_over, use_threads
from oneshot import WORK, against, measured

HERE = Path(__file__).resolve().parent
LEDGER, PAGE = HERE / "prune.jsonl", HERE / "PRUNE.md"
KEY = ("level", "recipe", "seed")
LEVELS = (20, 35, 50)
RATES = (1e-4, 3e-4, 1e-3)
BASELINE = "llm_pruner"
BLOCKS = {20: 8, 35: 13, 50: 19}  # of 30, which makes about that part of all parameters
STREAM = {20: 0.375, 35: 0.5, 50: 0.625}  # of the width; the head becomes a matrix of its own
TUNED = "recover(steps={steps}, learning_rate={rate})"
WHOLE = "sparsity={sparsity}, of='model'"
TRAINED = "steps={steps}, learning_rate={rate}"
AS_IT_CAME = "as it came"


@dataclass(frozen=True)
class Side:
    """cuts: in one shot; None where nothing is cut without training. learns: with {steps} or {half} and {rate} in it."""

    name: str
    cuts: str | None
    learns: str

    def recipes(self, level: int, given: argparse.Namespace) -> list[str]:
        values = {"sparsity": level / 100, "blocks": BLOCKS[level], "stream": STREAM[level]}
        values |= {"steps": given.steps, "half": given.steps // 2}
        once = [] if self.cuts is None else [self.cuts.format(**values)]
        return once + [self.learns.format(**values, rate=f"{rate:g}") for rate in given.rates]


def _cut(recipe: str) -> Side:
    return Side(recipe.partition("(")[0], recipe, f"{recipe} -> {TUNED}")


SIDES = (
    *(_cut(f"{method}({WHOLE})") for method in ("magnitude_sp", "wanda_sp", "flap", "llm_pruner", "adapt_pruner")),
    _cut("shortgpt(drop={blocks})"),
    _cut("slicegpt(sparsity={stream})"),
    *(Side(method, None, f"{method}({WHOLE}, {TRAINED})") for method in ("loraprune", "adapt_pruner_tuned", "atp")),
    Side("compresso", None, f"compresso({WHOLE}, update='all', {TRAINED})"),
    Side("pat", None, f"pat(sparsity={{stream}}, {TRAINED})"),
    Side(
        "foldgpt_gates",
        "foldgpt_gates(drop={blocks}, steps={half})",
        "foldgpt_gates(drop={blocks}, steps={half}) -> recover(steps={half}, learning_rate={rate})",
    ),
)


def main() -> int:
    given = arguments()
    if given.one is not None:
        use_threads(given.threads)
        hand_over(given.result, measured(given, looked_at))
        return 0
    WORK.mkdir(parents=True, exist_ok=True)
    failed = 0
    for level, name, recipe in wanted(given):
        print(f"{recipe or AS_IT_CAME} ...", file=sys.stderr)
        failed += not run(given, level, name, recipe)
    if not given.quick and LEDGER.exists():
        PAGE.write_text(page(ledger.newest(LEDGER, *KEY)), encoding="utf-8")
    return 1 if failed else 0


def wanted(given: argparse.Namespace) -> list[tuple[int, str, str]]:
    """Level, side and recipe of what is to be run; without --again only what has no line."""
    found = [] if given.again or given.quick else ledger.newest(LEDGER, *KEY)
    there = {tuple(line[name] for name in KEY) for line in found}
    every = [(0, AS_IT_CAME, "")]
    every += [(level, side.name, recipe) for level in given.levels for side in SIDES for recipe in side.recipes(level, given)]
    return [
        (level, name, recipe)
        for level, name, recipe in every
        if (level, recipe, given.seed) not in there and any(word in recipe for word in given.only)
    ]


def run(given: argparse.Namespace, level: int, name: str, recipe: str) -> bool:
    """One line in a process of its own; whether it came to an end."""
    numbers = ("--seed", given.seed, "--windows", given.windows, "--judged-windows", given.judged_windows)
    found = ledger.measure(__file__, recipe, (*numbers, "--threads", given.threads), WORK)
    if found is not None:
        line = {"level": level, "side": name, "recovered": "steps=" in recipe and "learning_rate=" in recipe}
        ledger.keep(LEDGER, {**line, "recipe": recipe, "seed": given.seed, **found}, given.quick)
    return found is not None


def looked_at(model: Any) -> dict[str, Any]:
    """How many parameters there are, and how fast the saved model decodes with as many threads as were given."""
    import torch

    from trimtab.host.checkpoint import save

    with TemporaryDirectory() as place:
        folder = save(model, None, Path(place) / "model")
        threads = str(torch.get_num_threads())
        call = [sys.executable, "-c", "from trimtab.cli.main import run; run()", "bench", str(folder), "--threads", threads]
        told = json.loads(subprocess.run([*call, "--json", "--quiet"], stdout=subprocess.PIPE, check=True).stdout)
    decode = told["threads"][0]["decode"]
    speed = {"engine": told["engine"], "decode": decode["value"], "decode_stderr": decode["stderr"]}
    return {"parameters": sum(p.numel() for p in model.parameters()), **speed}


def page(found: list[dict[str, Any]]) -> str:
    setting = found[0]["setting"]
    parts = [
        "# Smaller shapes, side by side\n",
        "Generated by `prune.py` from `prune.jsonl`, not edited by hand. "
        f"`{setting['model']}`, shown {setting['windows']} x {setting['length']} tokens of `{setting['shown']}`, judged on "
        f"{setting['judged_windows']} x {setting['length']} tokens of `{setting['judged']}`; ± is the standard error over "
        f"windows. {setting['threads']} threads; seconds on the wall. After recovery, the best of the learning rates "
        f"{', '.join(f'{rate:g}' for rate in RATES)}; all rates are in the lines. Of the model: {setting['history']}.\n",
    ]
    for seed in sorted({line["seed"] for line in found}):
        untouched = next((line for line in found if line["seed"] == seed and not line["level"]), None)
        for level in LEVELS:
            for recovered, how in ((False, "as it is"), (True, "after the same steps of recovery")):
                here = [line for line in found if (line["level"], line["recovered"], line["seed"]) == (level, recovered, seed)]
                if here:
                    parts.append(table(f"{level} % removed, {how}, seed {seed}", best(here), untouched))
    return "\n".join(parts)


def best(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of every side the line of the lowest perplexity; in its order."""
    ordered = sorted(found, key=lambda line: line["perplexity"])
    return list({line["side"]: line for line in reversed(ordered)}.values())[::-1]


def table(title: str, found: list[dict[str, Any]], untouched: dict[str, Any] | None) -> str:
    baseline = next((line for line in found if line["side"] == BASELINE), None)
    rows = [
        f"## {title}\n",
        f"| recipe | removed | perplexity | against `{BASELINE}`, nats | seconds | peak MB | decodes, tokens/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for line in [*([untouched] if untouched else []), *found]:
        gone = "" if untouched is None else f"{100 * (1 - line['parameters'] / untouched['parameters']):.1f} %"
        cells = (
            f"`{line['recipe']}`" if line["recipe"] else AS_IT_CAME,
            gone,
            f"{line['perplexity']:.2f} ± {line['stderr']:.2f}",
            "" if baseline in (None, line) else against(line, baseline),
            f"{line['seconds']:.0f}",
            f"{line['peak'] / 1e6:.0f}",
            f"{line['decode']:.1f} ± {line['decode_stderr']:.1f} ({line['engine']})",
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD", help="recipes that have one of these words in them")
    parser.add_argument("--levels", type=int, nargs="+", choices=LEVELS, default=list(LEVELS), help="per cent that is removed")
    parser.add_argument("--again", action="store_true", help="also what has a line")
    parser.add_argument("--quick", action="store_true", help="tries the plumbing; nothing is kept")
    parser.add_argument("--steps", type=int, default=100, help="steps of 4 windows that recovery may take")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--windows", type=int, default=128, help="calibration windows")
    parser.add_argument("--judged-windows", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.rates = RATES
    if given.quick:
        given.windows = given.judged_windows = 4
        given.steps, given.rates, given.levels = 2, RATES[:1], given.levels[:1]
    return given


if __name__ == "__main__":
    raise SystemExit(main())

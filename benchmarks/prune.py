"""A fifth to a half of a real model's parameters removed for good, as it is and after the same recovery for everyone.

    python benchmarks/prune.py                     every line that is not there yet
    python benchmarks/prune.py --only loraprune    those whose recipe has one of these words in it
    python benchmarks/prune.py --compute bfloat16  matrix products of calibration and training in bfloat16, for everyone
    python benchmarks/prune.py --levels 35 50      these fractions
    python benchmarks/prune.py --seed 1            calibration windows and their order drawn anew
    python benchmarks/prune.py --quick             4 windows, 2 steps, one rate, one level; nothing is kept

The budget of recovery is `--steps` steps of 4 windows: `recover` after what cuts in one shot, the method's own training where
it learns, half of each where only gates are learned. All take the same three learning rates where 35 % are removed, and the one
with the best perplexity there at the other levels. Models are saved, and decoding is what `trimtab bench` says of the folder.
One process for each line of `prune.jsonl`; a run that was stopped goes on, and `PRUNE.md` is made from the newest line of every
recipe and seed. Widths of the stream come in steps of 72 in this model, and blocks are whole: what is removed is said beside
every recipe. Differences are paired, against the best of `llm_pruner`.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import oneshot
from ledger import Book, Job, Line, numbers, options, row
from oneshot import against

BOOK = Book(__file__, ("level", "recipe", "seed"))
LEVELS, SWEPT = (20, 35, 50), 35
TASKS, ITEMS = ("arc_easy", "sciq"), 100
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

    def recipes(self, level: int, given: argparse.Namespace, rates: Sequence[float]) -> list[str]:
        values = {"sparsity": level / 100, "blocks": BLOCKS[level], "stream": STREAM[level]}
        values |= {"steps": given.steps, "half": given.steps // 2}
        once = [] if self.cuts is None else [self.cuts.format(**values)]
        return once + [self.learns.format(**values, rate=f"{rate:g}") for rate in rates]


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
    return BOOK.drive(arguments(), jobs, measured, page)


def jobs(given: argparse.Namespace) -> Iterator[Job]:
    """The level at which rates are tried comes first: the others take what is best by then."""
    asked = numbers(given, "seed", "windows", "judged_windows", "compute")
    yield Job("", {"level": 0, "side": AS_IT_CAME, "recovered": False, "recipe": "", "seed": given.seed}, asked)
    for level in sorted(given.levels, key=lambda level: level != SWEPT):
        for side in SIDES:
            rates = given.rates if level == SWEPT else best_rates(BOOK.lines(), side.name, given)
            for recipe in side.recipes(level, given, rates):
                if any(word in recipe for word in given.only):
                    fields = {"level": level, "side": side.name, "recovered": "steps=" in recipe and "learning_rate=" in recipe}
                    yield Job(recipe, {**fields, "recipe": recipe, "seed": given.seed}, asked)


def best_rates(found: list[Line], side: str, given: argparse.Namespace) -> Sequence[float]:
    """The rate with the best perplexity at the level that was swept; all of them as long as that is not known."""
    tried = [line for line in found if (line["level"], line["side"], line["seed"]) == (SWEPT, side, given.seed)]
    by_rate = {rate: line for line in tried for rate in given.rates if f"learning_rate={rate:g})" in line["recipe"]}
    return [min(by_rate, key=lambda rate: by_rate[rate]["perplexity"])] if by_rate.keys() == set(given.rates) else given.rates


def measured(given: argparse.Namespace) -> Line:
    return oneshot.measured(given, looked_at)


def looked_at(model: Any) -> Line:
    """How many parameters there are, what it gets right, and how fast the saved model decodes."""
    import torch
    from transformers import AutoTokenizer

    from trimtab.host.checkpoint import save
    from trimtab.host.model_assets import resolve_model
    from trimtab.measure.tasks import answer

    with TemporaryDirectory() as place:
        folder = save(model, None, Path(place) / "model")
        threads = str(torch.get_num_threads())
        call = [sys.executable, "-c", "from trimtab.cli.main import run; run()", "bench", str(folder), "--threads", threads]
        told = json.loads(subprocess.run([*call, "--json", "--quiet"], stdout=subprocess.PIPE, check=True).stdout)
    decode = told["threads"][0]["decode"]
    speed = {"engine": told["engine"], "decode": decode["value"], "decode_stderr": decode["stderr"]}
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(oneshot.MODEL))
    right = {task: float(answer(model, tokenizer, task, ITEMS).right().double().mean()) for task in TASKS}
    return {"parameters": sum(p.numel() for p in model.parameters()), "right": right, **speed}


def page(found: list[Line]) -> str:
    setting = found[0]["setting"]
    parts = [
        "# Smaller shapes, side by side\n",
        "Generated by `prune.py` from `prune.jsonl`, not edited by hand. "
        f"`{setting['model']}`, shown {setting['windows']} x {setting['length']} tokens of `{setting['shown']}`, judged on "
        f"{setting['judged_windows']} x {setting['length']} tokens of `{setting['judged']}`; ± is the standard error over "
        f"windows. {setting['threads']} threads, products in {setting['compute']}; seconds on the wall. After recovery, the best "
        f"of the learning rates {', '.join(f'{rate:g}' for rate in RATES)} at {SWEPT} %, and that one at the other levels; all "
        f"are in the lines. Right answers are of {ITEMS} items a task. Of the model: {setting['history']}.\n",
    ]
    for seed in sorted({line["seed"] for line in found}):
        untouched = next((line for line in found if line["seed"] == seed and not line["level"]), None)
        for level in LEVELS:
            for recovered, how in ((False, "as it is"), (True, "after the same steps of recovery")):
                here = [line for line in found if (line["level"], line["recovered"], line["seed"]) == (level, recovered, seed)]
                if here:
                    parts.append(table(f"{level} % removed, {how}, seed {seed}", best(here), untouched))
    return "\n".join(parts)


def best(found: list[Line]) -> list[Line]:
    """Of every side the line of the lowest perplexity; in its order."""
    ordered = sorted(found, key=lambda line: line["perplexity"])
    return list({line["side"]: line for line in reversed(ordered)}.values())[::-1]


def table(title: str, found: list[Line], untouched: Line | None) -> str:
    baseline = next((line for line in found if line["side"] == BASELINE), None)
    rows = [
        f"## {title}\n",
        row(
            ("recipe", "removed", "perplexity", f"against `{BASELINE}`, nats", *TASKS, "seconds", "peak MB", "decodes, tokens/s")
        ),
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for line in [*([untouched] if untouched else []), *found]:
        gone = "" if untouched is None else f"{100 * (1 - line['parameters'] / untouched['parameters']):.1f} %"
        cells = (
            f"`{line['recipe']}`" if line["recipe"] else AS_IT_CAME,
            gone,
            f"{line['perplexity']:.2f} ± {line['stderr']:.2f}",
            against(line, baseline),
            *(f"{100 * line['right'][task]:.0f} %" for task in TASKS),
            f"{line['seconds']:.0f}",
            f"{line['peak'] / 1e6:.0f}",
            f"{line['decode']:.1f} ± {line['decode_stderr']:.1f} ({line['engine']})",
        )
        rows.append(row(cells))
    return "\n".join(rows) + "\n"


def arguments() -> argparse.Namespace:
    parser = options(__doc__, "tries the plumbing", seed="of the calibration windows and their order")
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD", help="recipes that have one of these words in them")
    parser.add_argument("--levels", type=int, nargs="+", choices=LEVELS, default=list(LEVELS), help="per cent that is removed")
    parser.add_argument("--steps", type=int, default=100, help="steps of 4 windows that recovery may take")
    parser.add_argument("--windows", type=int, default=128, help="calibration windows")
    parser.add_argument("--judged-windows", type=int, default=24)
    parser.add_argument("--compute", choices=["float32", "bfloat16"], default="float32", help="of calibration and training")
    given = parser.parse_args()
    given.rates = RATES
    if given.quick:
        given.windows = given.judged_windows = 4
        given.steps, given.rates, given.levels = 2, RATES[:1], given.levels[:1]
    return given


if __name__ == "__main__":
    raise SystemExit(main())

"""A fifth to a half of a real model's parameters removed for good, as it is and after the same recovery for everyone.

    python benchmarks/prune.py                     every line that is not there yet
    python benchmarks/prune.py --only loraprune    those whose recipe has one of these words in it
    python benchmarks/prune.py --compute bfloat16  matrix products of calibration and training in bfloat16, for everyone
    python benchmarks/prune.py --levels 35 50      these fractions
    python benchmarks/prune.py --seed 1            calibration windows and their order drawn anew
    python benchmarks/prune.py --quick             4 windows, 2 steps, one rate, one level; nothing is kept

The budget of recovery is `--steps` steps of 4 windows: `recover` after what cuts in one shot, the method's own training where
it learns, half of each where only gates are learned. All try the same three learning rates where 35 % are removed; the best on a
text that is neither shown nor judged is kept, and taken at the other levels. Models are saved, and decoding is what `trimtab
bench` says of the folder. One process for each line of `prune.jsonl`; a run that was stopped goes on, and `PRUNE.md` is made from
the newest line of every recipe and seed. Widths of the stream come in steps of 9 in this model, and blocks are whole: what is
removed is said beside every recipe. Differences are paired, against `llm_pruner`. Of `pat` there is a level more, a quarter of
the width, for which its paper tells a speed. `foldgpt` removes nothing that is multiplied with: what it
saves is on disk.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import oneshot
from ledger import Book, Job, Line, numbers, options, row
from oneshot import against

BOOK = Book(__file__, ("level", "recipe", "seed"))
LEVELS, SWEPT, PROMISED = (20, 25, 35, 50), 35, 25
USUAL = tuple(level for level in LEVELS if level != PROMISED)
TASKS, ITEMS = ("arc_easy", "sciq"), 100
RATES = (1e-4, 3e-4, 1e-3)
BASELINE = "llm_pruner"
DEPTH, BLOCKS = 30, {20: 8, 35: 13, 50: 19}  # of so many, which makes about that part of all parameters
STREAM = {20: 0.34375, PROMISED: 0.25, 35: 0.46875, 50: 0.59375}  # of the width; the head becomes a matrix of its own
FOLDED = {20: "share=8", 35: "share=13", 50: "drop=8, share=11"}  # as many blocks less on disk
OPEN = "{rate}"
CHOSEN_BY, CHOOSING = "asset:coqa", 8
TUNED = "recover(steps={steps}, learning_rate={rate})"
WHOLE = "sparsity={sparsity}, of='model'"
TRAINED = "steps={steps}, learning_rate={rate}"
MEASURES = ("peak MB", "MB on disk", "decodes, tokens/s", "times as fast")
NARROWING = ("loraprune", "adapt_pruner_tuned", "atp", "efficientllm")
AS_IT_CAME = "as it came"


@dataclass(frozen=True)
class Side:
    """cuts: in one shot; None where nothing is cut without training. learns: with {steps} or {half} and {rate} in it."""

    name: str
    cuts: str | None
    learns: str
    levels: tuple[int, ...] = USUAL

    def recipes(self, level: int, steps: int) -> list[str]:
        """As they are written in lines; where something is learned, the rate is still open."""
        values: dict[str, Any] = {"sparsity": level / 100, "stream": STREAM[level], "steps": steps, "half": steps // 2}
        if level in BLOCKS:
            values |= {"blocks": BLOCKS[level], "folded": FOLDED[level], "speedup": f"{DEPTH / (DEPTH - BLOCKS[level]):.4g}"}
        return [way.format(**values, rate=OPEN) for way in (self.cuts, self.learns) if way is not None]


def _cut(recipe: str) -> Side:
    return Side(recipe.partition("(")[0], recipe, f"{recipe} -> {TUNED}")


SIDES = (
    *(_cut(f"{method}({WHOLE})") for method in ("magnitude_sp", "wanda_sp", "flap", "llm_pruner", "adapt_pruner")),
    _cut("shortgpt(drop={blocks})"),
    _cut("unified_skip(speedup={speedup})"),
    _cut("foldgpt({folded})"),
    _cut("slicegpt(sparsity={stream}, multiple=1)"),
    *(
        Side(method, None, f"{method}({WHOLE}, {TRAINED})")
        for method in ("loraprune", "adapt_pruner_tuned", "atp", "efficientllm")
    ),
    Side("adapt_pruner_tuned in one stage", None, f"adapt_pruner_tuned({WHOLE}, stages=1, {TRAINED})"),
    Side("compresso", None, f"compresso({WHOLE}, update='all', {TRAINED})"),
    Side("pat", None, f"pat(sparsity={{stream}}, multiple=1, {TRAINED})", LEVELS),
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
        for side in (side for side in SIDES if level in side.levels):
            for recipe in side.recipes(level, given.steps):
                if any(word in recipe for word in given.only):
                    fields = {
                        "level": level,
                        "side": side.name,
                        "recovered": OPEN in recipe,
                        "recipe": recipe,
                        "seed": given.seed,
                    }
                    yield Job(recipe, fields, asked | rate_for(fields, BOOK.lines(), given.rates))


def rate_for(fields: dict[str, Any], found: list[Line], rates: Sequence[float]) -> dict[str, float]:
    """What the process is told: the one rate there is to try, or the best where all were tried; nothing where all are to be."""
    if not fields["recovered"]:
        return {}
    swept, same = {**fields, "level": SWEPT}, ("level", "side", "recovered", "seed")
    best = [line["rate"] for line in found if fields["level"] != SWEPT and all(line[name] == swept[name] for name in same)]
    known = rates if len(rates) == 1 else best
    return {"rate": known[0]} if known else {}


def measured(given: argparse.Namespace) -> Line:
    return oneshot.measured(given, looked_at, tried)


def tried(given: argparse.Namespace) -> tuple[Any, Any, Line]:
    """The model of the best rate by a text of its own, and what that one cost; nothing is tried where no rate is open.

    What comes before the training is done once, and counted for every rate.
    """
    from trimtab.data.windows import evaluation_windows
    from trimtab.measure.perplexity import token_losses
    from trimtab.tensors.products import fast_products

    if OPEN not in given.one:
        return oneshot.compressed(given)
    once, _, learned = given.one.rpartition(" -> ")
    cut, tokenizer, first = oneshot.compressed(argparse.Namespace(**{**vars(given), "one": once}))
    losses, kept, peak = dict[float, float](), None, None
    for rate in [given.rate] if given.rate else given.rates:
        asked = argparse.Namespace(**{**vars(given), "one": learned.replace(OPEN, f"{rate:g}")})
        model, _, cost = oneshot.compressed(asked, (deepcopy(cut), tokenizer))
        peak = peak or max(first["peak"], cost["peak"])  # of the first rate: beside later ones lies the best one so far
        with fast_products():
            chosen_by = evaluation_windows(CHOSEN_BY, tokenizer, CHOOSING, oneshot.LENGTH, 0)
            losses[rate] = float(token_losses(model, chosen_by).double().mean())
        if kept is None or losses[rate] < losses[kept[1]["rate"]]:
            seconds = {name: first[name] + cost[name] for name in ("seconds", "processor")}
            kept = model, {**cost, **seconds, "rate": rate, "peak": peak}
        del model  # else it would count for the next one's memory
    assert kept is not None
    return kept[0], tokenizer, {**kept[1], "apart": {f"{rate:g}": loss for rate, loss in losses.items()}}


def looked_at(model: Any) -> Line:
    """How many parameters there are, what it gets right, and how large the saved model is and how fast it decodes."""
    import torch
    from transformers import AutoTokenizer

    from trimtab.host.checkpoint import save
    from trimtab.host.model_assets import resolve_model
    from trimtab.measure.tasks import answer

    tokenizer = AutoTokenizer.from_pretrained(resolve_model(oneshot.MODEL))
    with TemporaryDirectory() as place:
        folder = save(model, tokenizer, Path(place) / "model")
        disk = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        speed = decoding(folder, torch.get_num_threads())
    right = {task: float(answer(model, tokenizer, task, ITEMS).right().double().mean()) for task in TASKS}
    return {"parameters": sum(p.numel() for p in model.parameters()), "right": right, "disk": disk, **speed}


def decoding(folder: Path, threads: int) -> Line:
    """Tokens per second by `trimtab bench`; none where it refuses, as it does where a model is so far off that engines differ."""
    call = [sys.executable, "-c", "from trimtab.cli.main import run; run()", "bench", str(folder), "--threads", str(threads)]
    done = subprocess.run([*call, "--json", "--quiet"], stdout=subprocess.PIPE, check=False)
    if done.returncode:
        return {"engine": "refused", "decode": None, "decode_stderr": None}
    told = json.loads(done.stdout)
    decode = told["threads"][0]["decode"]
    return {"engine": told["engine"], "decode": decode["value"], "decode_stderr": decode["stderr"]}


def page(found: list[Line]) -> str:
    setting = found[0]["setting"]
    parts = [
        "# Smaller shapes, side by side\n",
        "Generated by `prune.py` from `prune.jsonl`, not edited by hand. "
        f"`{setting['model']}`, shown {setting['windows']} x {setting['length']} tokens of `{setting['shown']}`, judged on "
        f"{setting['judged_windows']} x {setting['length']} tokens of `{setting['judged']}`; ± is the standard error over "
        f"windows. {setting['threads']} threads, products in {setting['compute']}; seconds on the wall, of the training that was "
        f"kept. After recovery, the best of the learning rates {', '.join(f'{rate:g}' for rate in RATES)} at {SWEPT} % on "
        f"{CHOOSING} windows of `{CHOSEN_BY}`, and that one at the other levels. Right answers are of {ITEMS} items a task. Of "
        f"the model: {setting['history']}.\n",
    ]
    for seed in sorted({line["seed"] for line in found}):
        untouched = next((line for line in found if line["seed"] == seed and not line["level"]), None)
        for level in LEVELS:
            for recovered, how in ((False, "as it is"), (True, "after the same steps of recovery")):
                here = [line for line in found if (line["level"], line["recovered"], line["seed"]) == (level, recovered, seed)]
                if here:
                    here = sorted(here, key=lambda line: line["perplexity"])
                    parts.append(
                        table(f"{level} %{' of the width' * (level == PROMISED)} removed, {how}, seed {seed}", here, untouched)
                    )
    return "\n".join(parts)


def table(title: str, found: list[Line], untouched: Line | None) -> str:
    baseline = next((line for line in found if line["side"] == BASELINE), None)
    names = ("recipe", "removed", "perplexity", f"against `{BASELINE}`, nats", *TASKS, "seconds", *MEASURES)
    rows = [
        f"## {title}\n",
        row(names),
        "|---" * len(names) + "|",
    ]
    for line in [*([untouched] if untouched else []), *found]:
        gone = "" if untouched is None else f"{100 * (1 - line['parameters'] / untouched['parameters']):.1f} %"
        cells = (
            f"`{line['recipe'].replace(OPEN, str(line.get('rate')))}`" if line["recipe"] else AS_IT_CAME,
            gone,
            f"{line['perplexity']:.2f} ± {line['stderr']:.2f}",
            against(line, baseline),
            *(f"{100 * line['right'][task]:.0f} %" for task in TASKS),
            f"{line['seconds']:.0f}",
            f"{line['peak'] / 1e6:.0f}",
            f"{line['disk'] / 1e6:.1f}",
            line["engine"]
            if line["decode"] is None
            else f"{line['decode']:.1f} ± {line['decode_stderr']:.1f} ({line['engine']})",
            faster(line, untouched),
        )
        rows.append(row(cells))
    return "\n".join(rows) + "\n"


def faster(line: Line, untouched: Line | None) -> str:
    """Than the untouched model; empty where one of them was not timed."""
    there = untouched is not None and line is not untouched and line["decode"] and untouched["decode"]
    return f"{line['decode'] / untouched['decode']:.2f}" if there and untouched else ""


def arguments() -> argparse.Namespace:
    parser = options(__doc__, "tries the plumbing", seed="of the calibration windows and their order")
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD", help="recipes that have one of these words in them")
    parser.add_argument("--levels", type=int, nargs="+", choices=LEVELS, default=list(LEVELS), help="per cent that is removed")
    parser.add_argument("--steps", type=int, default=100, help="steps of 4 windows that recovery may take")
    parser.add_argument("--windows", type=int, default=128, help="calibration windows")
    parser.add_argument("--judged-windows", type=int, default=24)
    parser.add_argument("--compute", choices=["float32", "bfloat16"], default="float32", help="of calibration and training")
    parser.add_argument("--rate", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.rates = RATES
    if given.quick:
        given.windows = given.judged_windows = 4
        given.steps, given.rates, given.levels = 2, RATES[:1], given.levels[:1]
    return given


if __name__ == "__main__":
    raise SystemExit(main())

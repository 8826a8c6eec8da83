"""Searches against uniform strength and heuristics at the same budget: perplexity, candidates judged, minutes.

    python benchmarks/search.py                       every recipe and seed that has no line yet
    python benchmarks/search.py --only sparsity       one task: sparsity, bits, fractions or blocks
    python benchmarks/search.py --quick               two generations, 4 windows, nothing is kept: tries the plumbing

One process for each recipe and seed; levels are kept in `build/bench/levels-SEED`, so that searches over the same ones share them
(the first one's minutes are also those of making them), and `--threads` is also how many processes judge candidates. Lines are
appended to `search.jsonl`, a run that was stopped goes on, and `SEARCH.md` is made from the newest line of every recipe and seed.
Differences are paired over seeds and windows, against the first recipe of the task.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gauge import Gauge
from ledger import WORK, Book, Job, Line, apart, numbers, options, row

BOOK = Book(__file__, ("recipe", "seed"))
MODEL, SHOWN, JUDGED = "asset:smollm2-135m", "asset:squad-drop", "asset:boolq"
LENGTH = 256
SPARSITIES, BITS, FRACTIONS = "sparsity=0.4,0.5,0.6,0.7,0.8", "bits=2,3,4", "bits=2.5,3,3.5"
EVOLVED = "held_out={few}, generations={generations}, stages='0.25:4,0.5:2'"
TASKS: dict[str, tuple[str, ...]] = {
    "sparsity": (
        "sparsegpt(sparsity=0.6)",
        "sparsegpt by cosine(sparsity=0.6)",
        "sparsegpt by owl(sparsity=0.6)",
        "sparsegpt by sv_nup(sparsity=0.6, held_out={held_out})",
        f"sparsegpt by rd_prune(levels='{SPARSITIES}', mean=0.6, per='block', held_out={{few}})",
        f"sparsegpt by evopress(levels='{SPARSITIES}', mean=0.6, {EVOLVED})",
    ),
    "bits": (
        "gptq(bits=3, clip=True)",
        "gptq(clip=True) by layerwise_quant(bits=3)",
        "gptq(clip=True) by shiftadd_bits(bits=3.289)",
        f"gptq(clip=True) by rd_prune(levels='{BITS}', mean=3, per='block', held_out={{held_out}})",
        f"gptq(clip=True) by rd_prune(levels='{BITS}', mean=3, per='role', held_out={{held_out}})",
        f"gptq(clip=True) by rd_prune(levels='{BITS}', mean=3, held_out={{few}})",
        f"gptq(clip=True) by evopress(levels='{BITS}', mean=3, {EVOLVED})",
    ),
    "fractions": (
        "quarot -> pvq(bits=3)",
        f"quarot -> pvq by rd_prune(levels='{FRACTIONS}', mean=3, per='block', held_out={{held_out}})",
        f"quarot -> pvq by evopress(levels='{FRACTIONS}', mean=3, {EVOLVED})",
    ),
    "blocks": (
        "shortgpt(drop=6)",
        "shortgpt(drop=6, order='random')",
        f"evopress_blocks(drop=6, {EVOLVED})",
    ),
}


def main() -> int:
    return BOOK.drive(arguments(), jobs, measured, page)


def jobs(given: argparse.Namespace) -> Iterator[Job]:
    asked = numbers(given, *NUMBERS)
    for seed in range(given.seeds):
        for task in TASKS:
            for recipe in recipes(task, given):
                if given.only in (None, task):
                    yield Job(recipe, {"task": task, "recipe": recipe, "seed": seed}, {"seed": seed, **asked})


def recipes(task: str, given: argparse.Namespace) -> list[str]:
    """few: divergences of candidates are paired, so a search gains more from many candidates than from many tokens."""
    few = max(given.held_out // 4, LENGTH)
    return [recipe.format(held_out=given.held_out, few=few, generations=given.generations) for recipe in TASKS[task]]


def measured(given: argparse.Namespace) -> Line:
    import torch

    from trimtab import Calibration, Recipe
    from trimtab.data.windows import evaluation_windows
    from trimtab.host.checkpoint import load
    from trimtab.host.compress import compress
    from trimtab.host.model_assets import resolve_model
    from trimtab.host.provenance import provenance
    from trimtab.host.source import history
    from trimtab.measure.perplexity import perplexity, token_losses
    from trimtab.measure.size import bits_per_weight
    from trimtab.tensors.products import fast_products

    torch.set_num_threads(given.threads)
    folder, gauge = resolve_model(MODEL), Gauge()
    model, tokenizer = load(folder)
    assert tokenizer is not None
    recipe = Recipe.of(given.one, Calibration(SHOWN, given.tokens, LENGTH), seed=given.seed)
    how = {"workers": given.threads, "keep_levels": WORK / f"levels-{given.seed}"}
    with gauge("compress"):
        done = compress(model, recipe, tokenizer=tokenizer, **how)
    with fast_products():
        losses = token_losses(done.model, evaluation_windows(JUDGED, tokenizer, given.judged_windows, LENGTH, 0))
    found = perplexity(losses)
    return {
        "stored_bits": bits_per_weight(done.model)[0].value,
        "zeros": zeros(done.model),
        "perplexity": found.value,
        "losses": losses.mean(1).tolist(),
        "notes": done.report.notes,
        **gauge.stages["compress"],
        "setting": {"model": MODEL, "history": history(Path(folder)), "shown": SHOWN, "judged": JUDGED, "length": LENGTH}
        | numbers(given, *NUMBERS, "threads"),
        **provenance(),
    }


def zeros(model: Any) -> float:
    """Share of the weights of all blocks' matrices that are zero."""
    from trimtab.anatomy import Anatomy

    anatomy = Anatomy.of(model)
    matrices = [anatomy.weight(site).dense() for site in anatomy.sites if site.block is not None]
    return sum(int((m == 0).sum()) for m in matrices) / sum(m.numel() for m in matrices)


def page(found: list[Line]) -> str:
    """Markdown: a table for each task."""
    text = ["# Searches at one budget", "", "Made by `benchmarks/search.py` from `search.jsonl`.", ""]
    for task in TASKS:
        by_recipe: dict[str, dict[int, Line]] = {}
        for line in found:
            if line["task"] == task:
                by_recipe.setdefault(line["recipe"], {})[line["seed"]] = line
        if by_recipe:
            first = next(iter(by_recipe.values()))
            text += [f"## {task}", "", HEAD, RULE, *(compared(recipe, first, own) for recipe, own in by_recipe.items()), ""]
    return "\n".join(text)


HEAD = (
    "| recipe | stored bits | zeros | perplexity | nats against the first (95 % interval) | windows | seeds | minutes | notes |"
)
RULE = "|---|---|---|---|---|---|---|---|---|"


def compared(recipe: str, first: dict[int, Line], own: dict[int, Line]) -> str:
    """Means over seeds; the difference over those that both sides have."""
    both = sorted(first.keys() & own.keys())
    difference = "-"
    if both and first is not own:
        difference = apart(*([side[seed]["losses"] for seed in both] for side in (own, first)))
    bits, none, perplexity, seconds = (
        sum(line[name] for line in own.values()) / len(own) for name in ("stored_bits", "zeros", "perplexity", "seconds")
    )
    windows = len(next(iter(own.values()))["losses"])
    notes = next((note for line in own.values() for note in line["notes"] if "candidates" in note), "")
    cells = [
        f"`{recipe}`",
        f"{bits:.3f}",
        f"{none:.3f}",
        f"{perplexity:.2f}",
        difference,
        windows,
        len(own),
        f"{seconds / 60:.1f}",
        notes,
    ]
    return row(cells)


NUMBERS = ("tokens", "held_out", "generations", "judged_windows")


def arguments() -> argparse.Namespace:
    parser = options(__doc__, "two generations, 4 windows")
    parser.add_argument("--only", choices=list(TASKS), help="one task")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=16384, help="calibration tokens")
    parser.add_argument("--held-out", type=int, default=4096, help="tokens on which candidates are judged")
    parser.add_argument("--generations", type=int, default=100)
    parser.add_argument("--judged-windows", type=int, default=200)
    given = parser.parse_args()
    if given.quick:
        given.seeds, given.tokens, given.held_out, given.generations, given.judged_windows = 1, 1024, 512, 2, 4
    return given


if __name__ == "__main__":
    raise SystemExit(main())

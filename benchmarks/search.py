"""Searches against uniform strength and heuristics at the same budget: perplexity, candidates judged, minutes.

    python benchmarks/search.py                       every recipe and seed that has no line yet
    python benchmarks/search.py --only sparsity       one task: sparsity, bits, fractions or blocks
    python benchmarks/search.py --quick               two generations, 4 windows, nothing is kept: tries the plumbing

One process for each recipe and seed; levels are kept in `build/bench/levels-SEED`, so that searches over the same ones share them
(the first one's minutes are also those of making them). Lines are appended to `search.jsonl`, a run that was stopped goes on, and
`SEARCH.md` is made from the newest line of every recipe and seed. Differences are paired over seeds and windows, against the
first recipe of the task.
"""

import argparse
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ledger
from gauge import Gauge, hand_over, use_threads, versions

HERE = Path(__file__).resolve().parent
WORK = HERE.parent / "build" / "bench"
LEDGER, PAGE = HERE / "search.jsonl", HERE / "SEARCH.md"
MODEL, SHOWN, JUDGED = "asset:smollm2-135m", "asset:squad-drop", "asset:boolq"
LENGTH = 256
SPARSITIES, BITS, FRACTIONS = "sparsity=0.4,0.5,0.6,0.7,0.8", "bits=2,3,4", "bits=2.5,3,3.5"
EVOLVED = "held_out={held_out}, generations={generations}"
TASKS: dict[str, tuple[str, ...]] = {
    "sparsity": (
        "sparsegpt(sparsity=0.6)",
        "sparsegpt by cosine(sparsity=0.6)",
        "sparsegpt by owl(sparsity=0.6)",
        "sparsegpt by sv_nup(sparsity=0.6, held_out={held_out})",
        f"sparsegpt by rd_prune(levels='{SPARSITIES}', mean=0.6, per='block', held_out={{held_out}})",
        f"sparsegpt by evopress(levels='{SPARSITIES}', mean=0.6, {EVOLVED})",
    ),
    "bits": (
        "gptq(bits=3, clip=True)",
        "gptq(clip=True) by layerwise_quant(bits=3)",
        "gptq(clip=True) by shiftadd_bits(bits=3.289)",
        f"gptq(clip=True) by rd_prune(levels='{BITS}', mean=3, per='block', held_out={{held_out}})",
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
    given = arguments()
    if given.one is not None:
        use_threads(given.threads)
        hand_over(given.result, measured(given))
        return 0
    WORK.mkdir(parents=True, exist_ok=True)
    failed = sum(not run(given, task, recipe, seed) for task, recipe, seed in wanted(given))
    if not given.quick and LEDGER.exists():
        PAGE.write_text(page(ledger.newest(LEDGER, "recipe", "seed")), encoding="utf-8")
    return 1 if failed else 0


def wanted(given: argparse.Namespace) -> Iterator[tuple[str, str, int]]:
    """(task, recipe, seed) of what is to be run; without --again only what has no line."""
    there = (
        set()
        if given.again or given.quick
        else {(line["recipe"], line["seed"]) for line in ledger.newest(LEDGER, "recipe", "seed")}
    )
    for seed in range(given.seeds):
        for task, recipes in TASKS.items():
            for recipe in [recipe.format(**vars(given)) for recipe in recipes]:
                if (recipe, seed) not in there and given.only in (None, task):
                    yield task, recipe, seed


def run(given: argparse.Namespace, task: str, recipe: str, seed: int) -> bool:
    """One recipe in a process of its own; whether it came to an end."""
    print(f"seed {seed}: {recipe} ...", file=sys.stderr)
    numbers = [f"--{name.replace('_', '-')}={getattr(given, name)}" for name in NUMBERS]
    found = ledger.measure(__file__, recipe, ["--seed", seed, *numbers], WORK)
    if found is not None:
        ledger.keep(LEDGER, {"task": task, "recipe": recipe, "seed": seed, **found}, given.quick)
    return found is not None


def measured(given: argparse.Namespace) -> dict[str, Any]:
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
        | {name: getattr(given, name) for name in NUMBERS},
        "commit": commit(),
        "machine": machine(),
        "versions": versions("trimtab", "torch", "transformers"),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def zeros(model: Any) -> float:
    """Share of the weights of all blocks' matrices that are zero."""
    from trimtab.anatomy import Anatomy

    anatomy = Anatomy.of(model)
    matrices = [anatomy.weight(site).dense() for site in anatomy.sites if site.block is not None]
    return sum(int((m == 0).sum()) for m in matrices) / sum(m.numel() for m in matrices)


def page(found: list[dict[str, Any]]) -> str:
    """Markdown: a table for each task."""
    text = ["# Searches at one budget", "", "Made by `benchmarks/search.py` from `search.jsonl`.", ""]
    for task in TASKS:
        by_recipe: dict[str, dict[int, dict[str, Any]]] = {}
        for line in found:
            if line["task"] == task:
                by_recipe.setdefault(line["recipe"], {})[line["seed"]] = line
        if by_recipe:
            first = next(iter(by_recipe.values()))
            text += [f"## {task}", "", HEAD, RULE, *(row(recipe, first, own) for recipe, own in by_recipe.items()), ""]
    return "\n".join(text)


HEAD = (
    "| recipe | stored bits | zeros | perplexity | nats against the first (95 % interval) | windows | seeds | minutes | notes |"
)
RULE = "|---|---|---|---|---|---|---|---|---|"


def row(recipe: str, first: dict[int, dict[str, Any]], own: dict[int, dict[str, Any]]) -> str:
    """Means over seeds; the difference over those that both sides have."""
    import torch

    from trimtab.measure.paired import paired_difference

    both = sorted(first.keys() & own.keys())
    apart = "-"
    if both and first is not own:
        left, right = (torch.tensor([side[seed]["losses"] for seed in both]) for side in (own, first))
        difference = paired_difference(left, right)
        apart = f"{difference.difference:+.4f} ({difference.low:+.4f} to {difference.high:+.4f})"
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
        apart,
        windows,
        len(own),
        f"{seconds / 60:.1f}",
        notes,
    ]
    return f"| {' | '.join(map(str, cells))} |"


NUMBERS = ("tokens", "held_out", "generations", "judged_windows", "threads")


def arguments() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", choices=list(TASKS), help="one task")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--again", action="store_true", help="also what has a line")
    options.add_argument("--quick", action="store_true", help="try the plumbing; nothing is kept")
    options.add_argument("--tokens", type=int, default=16384, help="calibration tokens")
    options.add_argument("--held-out", type=int, default=4096, help="tokens on which candidates are judged")
    options.add_argument("--generations", type=int, default=20)
    options.add_argument("--judged-windows", type=int, default=200)
    options.add_argument("--threads", type=int, default=2, help="also how many processes judge candidates")
    options.add_argument("--one", help=argparse.SUPPRESS)
    options.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    options.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.quick:
        given.seeds, given.tokens, given.held_out, given.generations, given.judged_windows = 1, 1024, 512, 2, 4
    return given


if __name__ == "__main__":
    sys.exit(main())

"""Writes docs/choosing.md: which recipes were best at which size, out of the ledger of claims and the benchmark of passes."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from measured import MODEL, Results, Side, sides

from trimtab.core.registry import room
from trimtab.measure.claims_page import table

MOST = 4  # rows in a band
BANDS = ((0.0, 2.5), (2.5, 3.0), (3.0, 3.4), (3.4, 4.1), (4.1, 5.0))  # stored bits per weight
DENSE = 16  # bits per weight from which on a result is no low-bit one
ROOMS = {
    "prune": ("Fewer weights", "Matrices keep their shape and get zeros; the folder is smaller only with `--packed`."),
    "factorize": ("Thinner matrices", "A matrix becomes a product of two narrow ones."),
    "channels": ("Fewer channels", "Heads and neurons are gone, so every runtime has less to do."),
    "blocks": ("Fewer blocks", "Whole blocks are gone."),
}
INTRO = """
Every number here was measured on one small model, so read the *order* of the rows, not the perplexities: a larger model
loses less at the same bits. All rows of a table come from the same tokens; three seeds draw three sets of calibration
windows, and the range over them stands in brackets. A row that is better by less than these ranges is not better.

## Which question do you have?

| you want | begin with | then |
|---|---|---|
| a given size, and no thinking | `trimtab compress MODEL -o OUT --size 45%` (or `--bits 3.5`) | `trimtab compare MODEL OUT` |
| the least loss at a size, and half an hour | `--search rd_prune --levels "gptq:bits=2,3,4"` ([searches](search.md)) | \
an hour: `--search evopress` |
| a goal: so fast, so much memory, so little loss | \
`--speedup 2x`, `--fit 2GiB`, `--max-ppl-increase 3%` ([goals](recipes.md#goals)) | what it says lies beyond |
| 4 bits, to run elsewhere | any rounding method with `bits=4` | `trimtab export OUT --to gguf --dry-run`: what is exact there |
| 3 bits | the first rows of that band | `--tokens`: more calibration text |
| 2 bits | the first row of that band, and expect a worse model | a larger model at 3 bits may be the better use of the bytes |
| no calibration text at hand | `rtn`, `hqq`, `slim_quant`, `easyquant` (they look at no data) | 4 bits or more |
| less work in every runtime | fewer channels or blocks | then fewer bits |
| what was lost, back, or a task learned | `trimtab adapt OUT DATA -o ADAPTER --method lora` | [adaptation](adapt.md) |
| to know where a model can be cut | `trimtab probe MODEL` | `where:` in a [recipe](recipes.md) |
"""


def page(results: Results, passes: Sequence[dict[str, Any]], notice: str) -> str:
    """The Markdown of docs/choosing.md."""
    found = sides(results)
    lines = [notice, "", "# Choosing a method", INTRO.rstrip(), "", "## Fewer bits", "", *_about(found)]
    for low, high in BANDS:
        lines += _section(
            f"{low:g} to {high:g} bits per weight" if low else f"Up to {high:g} bits per weight", found, _within(low, high)
        )
    for place, (title, what) in ROOMS.items():
        lines += ["", f"## {title}", "", what, ""]
        lines += _rows([side for side in found if _of(side, place)])
    return "\n".join([*lines, *_passes(passes)]) + "\n"


def _about(found: Sequence[Side]) -> Iterator[str]:
    base = {side.base for side in found}
    yield f"Model: `{MODEL}`, perplexity {min(base):.2f} as it came." if base else "Nothing was measured yet."
    yield "Bits per weight count codes, scales, offsets and all else that is stored of the compressed matrices."


def _within(low: float, high: float) -> Callable[[Side], bool]:
    return lambda side: low < side.bits <= high and not {room(id) for id in side.methods()} & ROOMS.keys() - {"factorize"}


def _of(side: Side, place: str) -> bool:
    return side.bits > DENSE and place in {room(id) for id in side.methods()}


def _section(title: str, found: Sequence[Side], fits: Callable[[Side], bool]) -> list[str]:
    chosen = [side for side in found if fits(side)][:MOST]
    return ["", f"### {title}", "", *_rows(chosen)] if chosen else []


def _rows(chosen: Sequence[Side]) -> Iterator[str]:
    columns = ("recipe", "bits per weight", "perplexity, mean (range) of the seeds", "windows x seeds", "settles")
    yield from table(columns, (_row(side) for side in chosen[:MOST]))


def _row(side: Side) -> tuple[str, ...]:
    repeats = f"{side.windows} x {len(side.perplexities)}"
    return (f"`{side.recipe}`", f"{side.bits:.3f}", side.shown(), repeats, "; ".join(_linked(claim) for claim in side.claims[:2]))


def _linked(claim: str) -> str:
    method, _, rest = claim.partition(" ")
    return f"[{method}](methods/{method}.md#claims) {rest}"


def _passes(lines: Sequence[dict[str, Any]]) -> Iterator[str]:
    """What a pass takes: the last run of every side of ours that is as long as the last run of all."""
    measured = [one for one in lines if one["program"] == "trimtab" and not one["red"] and "compress" in one.get("stages", {})]
    same = [one for one in measured if one["setting"] == measured[-1]["setting"]]
    ours = [*{one["side"]: one for one in same}.values()]
    if not ours:
        return
    setting = ours[0]["setting"]
    yield from ("", "## What a pass takes", "")
    shown = f"{setting['windows']} x {setting['length']} tokens of calibration text"
    yield f"{shown}, {setting['bits']} bit, {setting['threads']} threads,"
    where = f"`{setting['model']}`, {ours[0]['machine']['processor']}"
    yield f"{where}; the last run of each, not all on one day, more in [benchmarks](../benchmarks/README.md)."
    yield ""
    rows = ((one["side"], f"{_took(one):.0f}", f"{one['perplexity']:.2f} ± {one['stderr']:.2f}") for one in ours)
    yield from table(("side", "seconds", "perplexity ± standard error over windows"), rows)


def _took(line: dict[str, Any]) -> float:
    return float(line["stages"]["compress"]["seconds"])


def read_passes(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()] if file.exists() else []

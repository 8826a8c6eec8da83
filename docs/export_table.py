"""Writes the table of round trips into docs/export.md: what becomes of a model in every format that it can be exported to.

A tiny model is compressed in each of the ways below and planned for each target; nothing of the table is written by hand. A cell
is `exact`, with what the matrices become, or `refused`, with the largest change where rounding was asked for. `--check` writes
nothing and fails where the page says something else.
"""

import re
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

import torch

from trimtab.anatomy import Anatomy
from trimtab.core.edits import Narrow
from trimtab.core.errors import UsageError
from trimtab.core.recipe import Calibration, Recipe, Step, Where
from trimtab.core.seeds import Seeds
from trimtab.engine.apply import apply
from trimtab.engine.run import run
from trimtab.host.export.contents import Contents, Entry, values_of
from trimtab.host.export.stock import stock_config
from trimtab.host.export.targets import TARGETS
from trimtab.methods.factorize.lqer import Lqer
from trimtab.methods.factorize.svd import Svd
from trimtab.methods.quantize.quip_sharp import QuipSharp
from trimtab.methods.quantize.rtn import Rtn
from trimtab.methods.quantize.shiftaddllm import ShiftAddLlm
from trimtab.testing.folders import byte_tokenizer
from trimtab.testing.tiny import tiny

PAGE = Path(__file__).resolve().parent / "export.md"
BEGIN, END = "<!-- Written by docs/export_table.py. -->", "<!-- End of what docs/export_table.py writes. -->"
ATTENTION = Where(only=("self_attn",))
NEURONS = Where(only=("mlp",))
MADE: dict[str, tuple[Step, ...]] = {
    "4 bits, groups of 32, symmetric": (Step(Rtn(bits=4, group_size=32, symmetric=True)),),
    "4 bits, groups of 32": (Step(Rtn(bits=4, group_size=32)),),
    "8 bits, groups of 32, symmetric": (Step(Rtn(bits=8, group_size=32, symmetric=True)),),
    "8 bits, groups of 32": (Step(Rtn(bits=8, group_size=32)),),
    "4 bits, a group a row": (Step(Rtn(bits=4, group_size=0, symmetric=True)),),
    "3 bits, groups of 32": (Step(Rtn(bits=3, group_size=32)),),
    "3 and 8 bits": (Step(Rtn(bits=3, group_size=32), ATTENTION), Step(Rtn(bits=8, group_size=64, symmetric=True), NEURONS)),
    "all layers equally narrow": (),
    "low rank": (Step(Svd(keep=0.5)),),
    "3 planes of signs": (Step(ShiftAddLlm(bits=3)),),
    "lattice points, both sides turned": (Step(QuipSharp()),),
    "3 bits + low rank": (Step(Rtn(bits=3, group_size=32)), Step(Lqer(rank=4))),
}
ROUNDED = {"gguf": "q8_0", "gptq": "float16", "awq": "float16", "compressed-tensors": "float16"}


def main(words: Sequence[str] | None = None) -> int:
    options = ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--check", action="store_true", help="write nothing, fail if the page is stale")
    given = options.parse_args(words)
    before = PAGE.read_text(encoding="utf-8")
    wanted = filled(before, table())
    if given.check:
        print("" if before == wanted else f"{PAGE} is stale; run `python docs/export_table.py`")
        return int(before != wanted)
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


def filled(page: str, made: str) -> str:
    """The page with the table between its marks."""
    head, _, rest = page.partition(BEGIN)
    return f"{head}{BEGIN}\n\n{made}\n\n{END}{rest.partition(END)[2]}"


def table() -> str:
    """Markdown."""
    lines = ["| model | " + " | ".join(f"`{to}`" for to in TARGETS) + " |", "|---" * (1 + len(TARGETS)) + "|"]
    for name, steps in MADE.items():
        contents = contents_of(steps)
        lines.append(f"| {name} | " + " | ".join(cell(to, contents) for to in TARGETS) + " |")
    return "\n".join(lines)


def contents_of(steps: Sequence[Step]) -> Contents:
    """A tiny model after these steps; without any, with three quarters of its neurons and half of its heads."""
    model = tiny("llama", num_hidden_layers=2, vocab_size=264)
    if steps:
        shown = torch.randint(264, (4, 32), generator=Seeds(0).at("table"))
        run(model, Recipe(tuple(steps), Calibration(tokens=128, length=32)), [shown])
    else:
        anatomy = Anatomy.of(model)
        for coupling in anatomy.couplings():
            kept = 1 if coupling.unit == "kv_group" else 3 * coupling.units // 4
            apply(anatomy, [Narrow(coupling, torch.arange(coupling.units) < kept)])
    return Contents(model, byte_tokenizer(), stock_config(model), values_of(model))


def cell(to: str, contents: Contents) -> str:
    """What becomes of the matrices inside of the blocks."""
    try:
        entries = TARGETS[to].plan(contents, None)
    except UsageError as error:
        return f"refused: {str(error).partition(': ')[2].partition(' to ')[0]}"
    if all(entry.verdict == "exact" for entry in entries):
        return f"exact: {becomes(entries)}"
    count = sum(entry.verdict == "refused" for entry in entries)
    part = "" if count == len(matrices(entries)) else f" {count} of {len(matrices(entries))}"
    rounded = TARGETS[to].plan(contents, ROUNDED[to])
    change = max((entry.error or 0.0 for entry in rounded), default=0.0)
    said = f"re-quantized to `{ROUNDED[to]}`, {change:.1g} away" if change else f"exact with `--requantize {ROUNDED[to]}`"
    return f"refused{part}; {said}"


def matrices(entries: Sequence[Entry]) -> list[Entry]:
    return [entry for entry in entries if ".layers." in entry.name and len(entry.shape) == 2]


def becomes(entries: Sequence[Entry]) -> str:
    """In the order of the model, each once."""
    kinds = (re.sub(r" \+ rank .*", " + adapter", entry.becomes.partition(",")[0]) for entry in matrices(entries))
    return ", ".join(dict.fromkeys(kinds))


if __name__ == "__main__":
    sys.exit(main())

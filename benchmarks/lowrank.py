"""Factoring side by side: 10, 20 and 30 % of the parameters removed, and factors with codes against codes alone.

    python benchmarks/lowrank.py                            everything that has not been measured yet, then LOWRANK.md
    python benchmarks/lowrank.py --only "20 %" "3 bits"     these tables
    python benchmarks/lowrank.py --seeds 0                  one seed instead of three
    python benchmarks/lowrank.py --quick                    4 windows of the smallest model: tries the plumbing, writes nothing

Sides are measured and kept as those of claims are (`trimtab.measure.side_store`), in the setting of claims: what a claim has
measured is not measured again, and a run that was stopped goes on. Seconds are of a whole side, opening and judging included.
How fast a side decodes is taken from `lowrank_speed.jsonl`, where `lowrank_speed.py` has written it.
Of factors and codes together, and of codes with a low-rank term, strengths are chosen from the plan of the recipe: the most that
the model stores in no more bytes than with the codes alone that they are set against. Groups need ranks of whole groups, so
those sides may be some per cent smaller; with one scale a row any rank will do, and bytes are equal to half a per cent.
The table of transforms needs no model: how far butterfly products are from the matrices that they are found from.
"""

import argparse
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter

import torch
from ledger import Line, row
from side_tables import against, arguments, head, measured, perplexity, setting, told

from trimtab.core.errors import UsageError
from trimtab.core.recipe import Recipe
from trimtab.measure.side_store import SideStore
from trimtab.measure.sides import Side
from trimtab.tensors.butterfly import bit_reversal, product, projected
from trimtab.tensors.hadamard import hadamard

Stored = Callable[[str], float]
PAGE = Path(__file__).resolve().parent / "LOWRANK.md"
REMOVED = {"10 %": 0.9, "20 %": 0.8, "30 %": 0.7}
BUDGETS = {"4 bits": 4, "3 bits": 3, "2 bits": 2}
TRANSFORMS = "transforms"
SIZES = (16, 64, 256, 1024)
GROUPS, SMALL = 32, 4
LEAST = 2  # bits that codes have
MORE_BITS = (1, 2, 4)  # of factors, above those of the codes alone
MORE = (
    "Removed are parameters of the blocks' matrices; stored bits, per weight of them, say what was really removed, in the dtype "
    "of the model. Chosen ranks also stand beside uniform ranks of the method that they are chosen for. Seconds are those of a "
    "side, opening and judging included; tokens a second are decoded one after the other, by the engine that is named."
)


def recipes(removed: str) -> list[str]:
    """Of one table; the first is what the others are set against."""
    keep = REMOVED[removed]
    alone = [
        f"{method}(keep={keep})" for method in ("svd_llm", "svd", "asvd", "lord", "saes_svd", "basis_sharing", "compactifai")
    ]
    chosen = ["svd_llm by d_rank", "svd by welore", "svd_llm by welore", "saes_svd by d_rank"]
    return [*alone, f"compactifai(keep={keep}, sites=2)", *(f"{choice}(keep={keep})" for choice in chosen)]


def uniform(recipe: str) -> str | None:
    """What an allocator's side has equal parameters with, everywhere the same; None for sides without an allocator."""
    method, by, allocator = recipe.partition(" by ")
    return f"{method}({allocator.partition('(')[2]}" if by else None


def coded(bits: int, groups: int, stored: Stored) -> list[str]:
    """Codes alone, then what stores no more: fewer parameters with more bits each, and fewer bits with a low-rank term.

    groups: inputs that share a scale, and steps of ranks. stored: bits per weight that a recipe leaves.
    """
    alone = f"gptq(bits={bits}, group_size={groups})"
    budget = stored(alone)
    factored = [
        f"svd_llm(keep={{}}, multiple={multiple}) -> gptq(bits={more}, group_size={size})"
        for more in (bits + one for one in MORE_BITS)
        for multiple, size in ((groups, groups), (1, 0))
    ]
    keeps = [step / 1000 for step in range(10, 1000)]
    # Half of the scales save less than a bit less, and the latter is not to be had everywhere.
    coarser = [(bits - 1, groups)] * (bits > LEAST) + [(bits, 2 * groups)]
    mended = [
        f"gptq(bits={fewer}, group_size={size}) -> {mend}(rank={{}})" for fewer, size in coarser for mend in ("lqer", "eora")
    ]
    ways = [*((way, keeps) for way in factored), *((way, range(1, 257)) for way in mended)]
    found = (strongest(way, values, budget, stored) for way, values in ways)
    return [alone, *(recipe for recipe in found if recipe is not None)]


def strongest(way: str, values: Sequence[float], budget: float, stored: Stored) -> str | None:
    """The recipe with the largest value that stores no more than the budget; values ascend. None where even the least does."""

    def needs(value: float) -> float:
        try:
            return stored(way.format(value))
        except UsageError:
            return 0.0  # ranks below a whole group cannot be rounded in groups: more is wanted

    recipe = way.format(values[max(bisect_right(values, budget, key=needs) - 1, 0)])
    try:
        return recipe if stored(recipe) <= budget else None
    except UsageError:
        return None


def planned(folder: str) -> Stored:
    """Bits per weight of the blocks' matrices that a recipe would leave of this model."""
    from trimtab.anatomy import Anatomy
    from trimtab.engine.plan import plan
    from trimtab.host.checkpoint import load

    anatomy = Anatomy.of(load(folder)[0])

    def stored(recipe: str) -> float:
        bits = plan(anatomy, Recipe.of(recipe)).steps[-1].bits
        assert bits is not None, "no data decide how large these are"
        return bits

    return stored


def main() -> int:
    given = arguments(__doc__, [*REMOVED, *BUDGETS, TRANSFORMS])
    names = given.only or [*REMOVED, *BUDGETS, TRANSFORMS]
    store = SideStore(setting(given))
    stored = planned(store.ground.folder) if BUDGETS.keys() & {*names} else None
    (unchanged,) = store.sides([None])
    as_it_came = f"perplexity {perplexity(unchanged):.2f} at {unchanged[0].bits:.2f} bits per weight of the blocks"
    sections = [head("Factored models", "lowrank.py", store.setting, f"{as_it_came}{_decoding()}", MORE)]
    sections += [transforms(SIZES) if name == TRANSFORMS else _section(name, given, store, stored) for name in names]
    return told(given, PAGE, sections)


def _decoding() -> str:
    """Of the model as it came, where that is known."""
    there = speeds()
    return f", {speed(there[''])} tokens/s" if "" in there else ""


def _section(name: str, given: argparse.Namespace, store: SideStore, stored: Stored | None) -> str:
    if name in REMOVED:
        return table(f"{name} of the parameters removed", measured(store, recipes(name)), speeds())
    assert stored is not None
    found = measured(store, coded(BUDGETS[name], SMALL if given.quick else GROUPS, stored))
    return table(f"Factors and codes in the bytes of codes of {name}", found, speeds())


def speeds() -> dict[str, Line]:
    """By recipe, what `lowrank_speed.py` has measured so far; "" is the model as it came."""
    from lowrank_speed import BOOK

    return {line["recipe"]: line for line in BOOK.lines()}


def speed(line: Line | None) -> str:
    """Empty where it was not measured."""
    if line is None:
        return ""
    if line["decode"] is None:
        return str(line["engine"])
    return f"{line['decode']:.1f} ± {line['decode_stderr']:.1f} ({line['engine']})"


def table(title: str, found: Mapping[str, list[Side]], fast: Mapping[str, Line]) -> str:
    """By perplexity; differences against the first recipe, and of what an allocator chose also against uniform ranks."""
    first, *_ = found
    names = ["recipe", "stored bits", "of the first's", "perplexity", f"against `{first}`, nats"]
    choices = any(map(uniform, found))
    names += ["against uniform, nats"] * choices + ["decodes, tokens/s", "seconds"]
    rows = [f"## {title}\n", row(names), "|---" * len(names) + "|"]
    for recipe, sides in sorted(found.items(), key=lambda side: perplexity(side[1])):
        cells = [
            f"`{recipe}`",
            f"{sides[0].bits:.3f}",
            f"{100 * sides[0].bits / found[first][0].bits:.1f} %",
            f"{perplexity(sides):.2f}",
            "" if recipe == first else against(sides, found[first]),
            *([_uniform_cell(recipe, found)] * choices),
            speed(fast.get(recipe)),
            f"{sum(side.seconds for side in sides) / len(sides):.0f}",
        ]
        rows.append(row(cells))
    return "\n".join(rows) + "\n"


def _uniform_cell(recipe: str, found: Mapping[str, list[Side]]) -> str:
    partner = uniform(recipe)
    return "" if partner is None else against(found[recipe], found[partner])


def transforms(sizes: Sequence[int]) -> str:
    """Root mean square of what is missing of every entry, of matrices whose entries are 1 / sqrt(n) in size."""
    rows = [
        "## Transforms found from their matrices\n",
        "| n | numbers | Fourier, rms | Hadamard, rms | seconds |",
        "|---|---|---|---|---|",
    ]
    for size in sizes:
        begun = perf_counter()
        waves = torch.fft.fft(torch.eye(size, dtype=torch.complex128), dim=0)[:, bit_reversal(size)] / size**0.5
        missing = [distance(matrix) for matrix in (waves, hadamard(size).double())]
        numbers = 2 * size * (size.bit_length() - 1)
        seconds = perf_counter() - begun
        rows.append(f"| {size} | {numbers} of {size**2} | {missing[0]:.1e} | {missing[1]:.1e} | {seconds:.1f} |")
    return "\n".join(rows) + "\n"


def distance(matrix: torch.Tensor) -> float:
    """Between a matrix [n, n] and the butterfly product found from it, per entry."""
    return float((product(projected(matrix)[None])[0] - matrix).abs().square().mean().sqrt())


if __name__ == "__main__":
    raise SystemExit(main())

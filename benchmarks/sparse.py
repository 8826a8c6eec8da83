"""Pruning methods side by side: 50, 60 and 70 %, 2:4 and 4:8, and what a low-rank term gives back at 2:4 with 3 bits.

    python benchmarks/sparse.py                        everything that has not been measured yet, then SPARSE.md
    python benchmarks/sparse.py --only 2:4 4:8         these tables
    python benchmarks/sparse.py --seeds 0              one seed instead of three
    python benchmarks/sparse.py --quick                4 windows of the smallest model: tries the plumbing, writes nothing

Sides are measured and kept as those of claims are (`trimtab.measure.side_store`), in the setting of claims: what a claim has
measured is not measured again, and a run that was stopped goes on. Seconds are of a whole side, opening and judging included.
"""

from pathlib import Path

from side_tables import arguments, head, measured, perplexity, setting, table, told

from trimtab.measure.side_store import SideStore

PAGE = Path(__file__).resolve().parent / "SPARSE.md"
LEVELS = ("50 %", "60 %", "70 %", "2:4", "4:8")
MENDED = "2:4 and 3 bits"
BOTH = "wanda(pattern='2:4') -> gptq(bits=3)"
MORE = (
    "Bits are stored ones: sparse matrices lie in the files with their zeros unless `packed` is asked for. Seconds are those of "
    "a side, opening and judging included."
)


def recipes(table: str) -> list[str]:
    """Of one table; the first is what the others are set against."""
    if table == MENDED:
        mends = [f"{method}(rank={rank})" for rank in (32, 64) for method in ("lqer", "eora")]
        return [BOTH, *(f"{BOTH} -> {mend}" for mend in mends)]
    pattern = "unstructured" if table.endswith("%") else table
    level = f"sparsity=0.{table[0]}" if table.endswith("%") else f"pattern='{table}'"
    swapped = "dsnot" if pattern == "unstructured" else f"dsnot(pattern='{pattern}')"
    masks = [f"{method}({level})" for method in ("wanda", "sparsegpt", "magnitude")]
    slim = f"{level}, pattern='unstructured'" if pattern == "unstructured" else level
    found = [*masks, *(f"{mask} -> {swapped}" for mask in masks), f"slim({slim})", f"slim({slim}, group_size=64)"]
    return (
        found
        if pattern == "unstructured"
        else [*found, f"armor({level}, iterations=0)", f"armor({level})", f"ast({level}, steps=50)"]
    )


def main() -> int:
    given = arguments(__doc__, [*LEVELS, MENDED])
    store = SideStore(setting(given))
    as_it_came = f"perplexity {perplexity(store.sides([None])[0]):.2f}"
    sections = [head("Pruned models", "sparse.py", store.setting, as_it_came, MORE)]
    sections += [table(name, measured(store, recipes(name))) for name in given.only or [*LEVELS, MENDED]]
    return told(given, PAGE, sections)


if __name__ == "__main__":
    raise SystemExit(main())

"""Factoring side by side: 10, 20 and 30 % of the parameters removed, and factors with codes against codes alone.

    python benchmarks/lowrank.py                       everything that has not been measured yet, then LOWRANK.md
    python benchmarks/lowrank.py --only "20 %" codes   these tables
    python benchmarks/lowrank.py --seeds 0             one seed instead of three
    python benchmarks/lowrank.py --quick               4 windows of the smallest model: tries the plumbing, writes nothing

Sides are measured and kept as those of claims are (`trimtab.measure.side_store`), in the setting of claims: what a claim has
measured is not measured again, and a run that was stopped goes on. Seconds are of a whole side, opening and judging included.
The table of transforms needs no model: how far butterfly products are from the matrices that they are found from.
"""

from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

import torch
from side_tables import arguments, head, measured, perplexity, setting, table, told

from trimtab.measure.side_store import SideStore
from trimtab.tensors.butterfly import bit_reversal, product, projected
from trimtab.tensors.hadamard import hadamard

PAGE = Path(__file__).resolve().parent / "LOWRANK.md"
REMOVED = {"10 %": 0.9, "20 %": 0.8, "30 %": 0.7}
CODES, TRANSFORMS = "codes", "transforms"
SIZES = (16, 64, 256, 1024)
GROUPS, SMALL = 32, 4
FACTORED = ((0.95, 4), (0.8, 5), (0.65, 6), (0.5, 8))  # fraction of the parameters and bits of each: about 4 bits per weight
MORE = (
    "Removed are parameters of the blocks' matrices; stored bits say what was really removed, in the dtype of the model. Seconds "
    "are those of a side, opening and judging included."
)
NAMES = {CODES: "Factors with codes, at equal bits", TRANSFORMS: "Transforms found from their matrices"}


def recipes(table: str, groups: int = GROUPS) -> list[str]:
    """Of one table; the first is what the others are set against. groups: inputs that share a scale, and steps of ranks."""
    if table == CODES:
        return coded(groups)
    keep = REMOVED[table]
    alone = [
        f"{method}(keep={keep})" for method in ("svd_llm", "svd", "asvd", "lord", "saes_svd", "basis_sharing", "compactifai")
    ]
    chosen = ["svd_llm by d_rank", "svd by welore", "svd_llm by welore", "saes_svd by d_rank"]
    return [*alone, f"compactifai(keep={keep}, sites=2)", *(f"{choice}(keep={keep})" for choice in chosen)]


def coded(groups: int) -> list[str]:
    """Fewer parameters with more bits each, beside all of them with about as many bits in all, and less."""
    factored = [f"svd_llm(keep={keep}, multiple={groups}) -> gptq(bits={bits}, group_size={groups})" for keep, bits in FACTORED]
    alone = [f"gptq(bits={bits}, group_size={size})" for bits, size in ((4, groups), (4, 2 * groups), (3, groups))]
    return alone + factored


def main() -> int:
    given = arguments(__doc__, [*REMOVED, *NAMES])
    store, groups = SideStore(setting(given)), SMALL if given.quick else GROUPS
    (unchanged,) = store.sides([None])
    as_it_came = f"perplexity {perplexity(unchanged):.2f} at {unchanged[0].bits:.2f} bits per weight of the blocks"
    sections = [head("Factored models", "lowrank.py", store.setting, as_it_came, MORE)]
    for name in given.only or [*REMOVED, *NAMES]:
        title = NAMES.get(name, f"{name} of the parameters removed")
        sections.append(transforms(SIZES) if name == TRANSFORMS else table(title, measured(store, recipes(name, groups))))
    return told(given, PAGE, sections)


def transforms(sizes: Sequence[int]) -> str:
    """Root mean square of what is missing of every entry, of matrices whose entries are 1 / sqrt(n) in size."""
    rows = [
        f"## {NAMES[TRANSFORMS]}\n",
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

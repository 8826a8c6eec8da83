"""Fast transforms learned: do butterfly factors that begin as random numbers become the Fourier and the Hadamard transform?

    python benchmarks/butterfly.py              every transform, size and seed that has no line yet
    python benchmarks/butterfly.py --most 64    sizes up to this one
    python benchmarks/butterfly.py --quick      the smallest size, one seed; nothing is kept

Of a matrix alone, the sum of squares of what is missing is lowered by Adam and then by L-BFGS, in complex128. Factors are complex
for both transforms: with real ones one of two seeds did not get to the Hadamard transform of 128, at no rate. It is learned
where the root mean square per entry falls below 1e-4; learning rates are tried in turn until one gets there, and a seed
draws the numbers that it begins with. Entries are 1 / sqrt(n) in size. The order of the Fourier transform's columns, bit
reversal, is given, not learned. Beside it stands what the best matrix of low rank with as many numbers misses. One process for
each line of `butterfly.jsonl`; a run that was stopped goes on, and `BUTTERFLY.md` is made from the lines. In closed form, without
learning: `lowrank.py --only transforms`.
"""

import argparse
from collections.abc import Iterator, Sequence
from statistics import fmean
from time import perf_counter
from typing import TYPE_CHECKING

from ledger import Book, Job, Line, numbers, options, row

if TYPE_CHECKING:
    from torch import Generator, Tensor

BOOK = Book(__file__, ("transform", "size", "seed"))
SIZES = (8, 16, 32, 64, 128, 256, 512, 1024)
TRANSFORMS = {"fourier": "Fourier", "hadamard": "Hadamard"}
REACHED = 1e-4
ENOUGH = 0.01  # of that: where Adam stops early
RATES = (0.1, 0.3, 0.03)
STEPS, POLISH = 500, 300  # of Adam, of L-BFGS


def main() -> int:
    return BOOK.drive(arguments(), jobs, measured, page)


def jobs(given: argparse.Namespace) -> Iterator[Job]:
    for size in (size for size in SIZES if size <= given.most):
        for transform in TRANSFORMS:
            for seed in range(given.seeds):
                fields = {"transform": transform, "size": size, "seed": seed}
                yield Job(transform, fields, {"size": size, "seed": seed, **numbers(given, "steps", "polish")})


def measured(given: argparse.Namespace) -> Line:
    import torch

    from trimtab.core.seeds import Seeds
    from trimtab.host.provenance import provenance

    torch.set_num_threads(given.threads)
    wanted, begun, tries = matrix(given.one, given.size), perf_counter(), list[dict[str, float]]()
    for rate in RATES:
        draw = Seeds(given.seed).at(given.one, str(given.size), str(rate))
        first, last = learned(wanted, rate, given.steps, given.polish, draw)
        tries.append({"rate": rate, "descended": first, "missing": last})
        if last < REACHED:
            break
    return {
        **{"tries": tries, "missing": min(one["missing"] for one in tries), "low_rank": low_rank(wanted)},
        **{"seconds": perf_counter() - begun, **numbers(given, "steps", "polish", "threads"), **provenance()},
    }


def matrix(transform: str, size: int) -> "Tensor":
    """Unitary, complex128; the Fourier transform with its columns in bit-reversed order."""
    import torch

    from trimtab.tensors.butterfly import bit_reversal
    from trimtab.tensors.hadamard import hadamard

    if transform == "hadamard":
        return hadamard(size).to(torch.complex128)
    return torch.fft.fft(torch.eye(size, dtype=torch.complex128), dim=0)[:, bit_reversal(size)] / size**0.5


def learned(wanted: "Tensor", rate: float, steps: int, polish: int, draw: "Generator") -> tuple[float, float]:
    """Root mean squares of what is missing per entry of `wanted` [n, n], after Adam and after L-BFGS as well."""
    import torch

    from trimtab.tensors.butterfly import product

    size = len(wanted)
    shape = 1, size.bit_length() - 1, size // 2, 2, 2
    # A factor of such numbers keeps a vector's size, on average.
    twiddle = (torch.randn(shape, generator=draw, dtype=wanted.dtype) * 0.5**0.5).requires_grad_()

    def loss() -> "Tensor":
        """Of one size for random factors, whatever n is; its gradient is there afterwards."""
        twiddle.grad = None
        value: Tensor = (product(twiddle)[0] - wanted).abs().square().mean() * size
        value.backward()
        return value.detach()

    adam = torch.optim.Adam([twiddle], lr=rate)
    slower = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    for _ in range(steps):
        if float(adam.step(loss)) < size * (ENOUGH * REACHED) ** 2:
            break
        slower.step()
    after = missing(twiddle, wanted)
    to_the_end = {"max_iter": polish, "tolerance_grad": 1e-12, "tolerance_change": 1e-16}
    torch.optim.LBFGS([twiddle], line_search_fn="strong_wolfe", **to_the_end).step(loss)
    return after, missing(twiddle, wanted)


def missing(twiddle: "Tensor", wanted: "Tensor") -> float:
    from trimtab.tensors.butterfly import product

    return float((product(twiddle.detach())[0] - wanted).abs().square().mean().sqrt())


def low_rank(wanted: "Tensor") -> float:
    """What the closest matrix misses whose two factors hold at most as many numbers as a butterfly, per entry."""
    import torch

    from trimtab.tensors.butterfly import numbers

    size = len(wanted)
    tail = torch.linalg.svdvals(wanted)[numbers((size, size)) // (2 * size) :]
    return float(tail.square().sum().sqrt()) / size


def page(found: Sequence[Line]) -> str:
    some = found[0]
    head = (
        "# Transforms, learned\n\n"
        "Generated by `butterfly.py` from `butterfly.jsonl`, not edited by hand. Complex butterfly factors from random numbers; "
        f"learning rates {', '.join(map(str, RATES))} are tried in turn until less than {REACHED:g} is missing, each with "
        f"at most {some['steps']} steps of Adam and {some['polish']} of L-BFGS. Root mean squares per entry of matrices whose "
        f"entries are 1 / sqrt(n) in size. {some['threads']} threads.\n"
    )
    names = (
        "transform",
        "n",
        "numbers",
        "seeds that got there",
        "worst missing",
        "best missing",
        "rates tried",
        "low rank",
        "seconds",
    )
    rows = [row(names), "|---" * len(names) + "|"]
    for transform, name in TRANSFORMS.items():
        for size in SIZES:
            here = [line for line in found if (line["transform"], line["size"]) == (transform, size)]
            if here:
                rows.append(row((name, *cells(size, here))))
    return "\n".join([head, *rows, ""])


def cells(size: int, here: Sequence[Line]) -> Iterator[str]:
    from trimtab.tensors.butterfly import numbers

    lost = [line["missing"] for line in here]
    yield str(size)
    yield f"{numbers((size, size))} of {size**2}"
    yield f"{sum(one < REACHED for one in lost)} of {len(here)}"
    yield f"{max(lost):.1e}"
    yield f"{min(lost):.1e}"
    yield f"{fmean(len(line['tries']) for line in here):.1f}"
    yield f"{here[0]['low_rank']:.1e}"
    yield f"{fmean(line['seconds'] for line in here):.0f}"


def arguments() -> argparse.Namespace:
    parser = options(__doc__, "the smallest size, one seed")
    parser.add_argument("--most", type=int, default=SIZES[-1], help="the largest size")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=STEPS, help="of Adam")
    parser.add_argument("--polish", type=int, default=POLISH, help="steps of L-BFGS, at most")
    given = parser.parse_args()
    if given.quick:
        given.most, given.seeds = SIZES[0], 1
    return given


if __name__ == "__main__":
    raise SystemExit(main())

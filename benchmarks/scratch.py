"""Training from the first step with something else in the place of matrices: loss, numbers, memory, at equal tokens.

    python benchmarks/scratch.py            every side, rate and seed that has no line yet
    python benchmarks/scratch.py --quick    one rate, one seed, 20 steps, two sides: tries the plumbing, nothing is kept

Every side is the shape of own-2m on its text and tokens. Its learning rate is the one of four with the best loss on rows held
out of that text, seed 0, or a further one where the best is at an end; the other seeds are run with that one. What is shown is
the loss on text of another kind. One process for each training; lines are appended to `scratch.jsonl`, a run that was stopped
goes on, and `SCRATCH.md` is made from them.

Sides of one group hold equally many numbers in the end, up to rounding. Memory of training is counted before and after every
update (parameters, buffers, gradients, optimizer; the most there was) and measured (most resident memory during the training,
less what was resident before it: activations are in that, too).
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

from gauge import Gauge
from ledger import Book, Job, Line, apart, numbers, options, row

from trimtab.measure.rates import next_rate

BOOK = Book(__file__, ("side", "rate", "seed"))
MODEL, JUDGED, HELD_OUT = "own-2m", "asset:boolq", 0.02
RATES = (1e-3, 2e-3, 4e-3, 8e-3)
DENSE = "dense"  # followed by a number: with so many blocks
EUGENS = "eugens"  # followed by the degree and the features of each: in the place of feed-forward layers
AT_A_TIME = "every=25, warm_up=5"
GROUPS: dict[str, tuple[str, ...]] = {
    "half of the numbers in the blocks": (
        "low_rank(keep=0.5)",
        "dense 2",
        "sltrain(keep=0.5)",
        "phm(components=2)",
        "structured_ffn(keep=0.222)",
        "structured_ffn(keep=0.222, guided=0.0)",
        "structured_ffn(keep=0.222, structure='block_dense')",
        "structured_ffn(keep=0.222, structure='block_shuffle', blocks=4)",
        "eugens 1 255",
        "eugens 2 127",
    ),
    "a twelfth of the numbers in the blocks": ("low_rank(keep=0.092)", "learned_butterfly", "sltrain(keep=0.092)"),
    "all numbers, some trained at a time": (
        "dense 4",
        f"sst(rank=32, {AT_A_TIME})",
        "relora(rank=32, every=75, warm_up=5)",
        "galore(rank=32, every=75)",
    ),
}


def main() -> int:
    return BOOK.drive(arguments(), jobs, measured, page)


def jobs(given: argparse.Namespace) -> Iterator[Job]:
    """All rates with the first seed, then the other seeds with the best of them, which is known by then."""
    sides = [side for group in GROUPS.values() for side in group]
    for side in sides[:3] if given.quick else sides:
        for rate in RATES[1:2] if given.quick else RATES:
            yield job(given, side, rate, 0)
        while not given.quick and (further := next_rate(tried(BOOK.lines(), side), RATES)) is not None:
            yield job(given, side, further, 0)
            if further not in tried(BOOK.lines(), side):
                break  # it did not finish
        best = None if given.quick else best_rate(BOOK.lines(), side)
        for seed in range(1, given.seeds) if best is not None else ():
            yield job(given, side, best, seed)


def job(given: argparse.Namespace, side: str, rate: float, seed: int) -> Job:
    fields = {"rate": rate, "seed": seed}
    return Job(side, {"side": side, **fields}, {**fields, **numbers(given, "steps", "judged_windows")})


def best_rate(found: list[Line], side: str) -> float | None:
    """By the loss on the rows held out, of the first seed; None while a rate is missing."""
    first = tried(found, side)
    return min(first, key=lambda rate: first[rate]) if next_rate(first, RATES) is None else None


def tried(found: list[Line], side: str) -> dict[float, float]:
    """Rates and losses on the rows held out, of the first seed."""
    return {line["rate"]: line["validation"] for line in found if line["side"] == side and line["seed"] == 0}


def measured(given: argparse.Namespace) -> Line:
    import torch

    from trimtab.data.examples import Examples, held_out
    from trimtab.data.windows import evaluation_windows
    from trimtab.host.homegrown import named, reading
    from trimtab.host.provenance import provenance
    from trimtab.host.scratch import changed, teach, text_rows
    from trimtab.host.trainer import validation_loss
    from trimtab.measure.perplexity import token_losses
    from trimtab.tensors.products import fast_products

    torch.set_num_threads(given.threads)
    grown = named(MODEL).grown
    course = changed(grown.course, given.steps or None, given.rate, given.seed)
    grown, gauge, memory = replace(grown, course=course), Gauge(), counting()
    with gauge("prepare"):
        tokenizer, texts = reading(grown)
        rows, apart = held_out(Examples(tuple(text_rows(texts, tokenizer, course.length))), HELD_OUT, 0)
        model, method = begun(given.one, grown)
        memory.model = model
    with TemporaryDirectory() as scratch, gauge("train"):
        done = teach(model, method, rows.rows, course, Path(scratch) / "state", beside=[memory])
    with fast_products():
        losses = token_losses(model, evaluation_windows(JUDGED, tokenizer, given.judged_windows, course.length, 0)).mean(1)
        validation = validation_loss(model, apart.rows, at_once=4)
    return {
        "validation": validation,
        "losses": losses.tolist(),
        "parameters": done.parameters,
        "trained": done.trained,
        "counted": memory.most,
        "peak": gauge.stages["train"]["peak"] - gauge.stages["prepare"]["after"],
        "seconds": gauge.stages["train"]["seconds"],
        "tokens": course.tokens,
        "setting": {"model": MODEL, "judged": JUDGED, **numbers(given, "judged_windows", "threads")},
        **provenance(),
    }


def begun(side: str, grown: Any) -> tuple[Any, Any]:
    """The random model of a side, and the method that it is trained with; None if it is trained as it is."""
    from trimtab.host.homegrown import untrained
    from trimtab.host.scratch import as_scratch

    kind, *sizes = side.split() if side.startswith((DENSE, EUGENS)) else (side,)
    if kind == DENSE:
        return untrained(replace(grown, layers=int(sizes[0]))), None
    model = untrained(grown)
    if kind == EUGENS:
        with_eugens(model, *map(int, sizes), grown.course.seed)
        return model, None
    return model, as_scratch(side)


def with_eugens(model: Any, degree: int, width: int, seed: int) -> None:
    """Every block's feed-forward layers become one layer of random features, of which the last matrix is trained."""
    from eugens import Eugen

    from trimtab.core.seeds import Seeds

    for number, block in enumerate(model.model.layers):
        block.mlp = Eugen(model.config.hidden_size, width, degree, Seeds(seed).at("eugens", str(number)))


def counting() -> Any:
    """A hook whose `most` is the most bytes that parameters, buffers, gradients and the optimizer's states held together."""
    from torch import Tensor

    from trimtab.core.trained import Hook

    class Counting(Hook):
        model: Any = None
        most = 0

        def before_update(self, step: int, optimizer: Any) -> None:
            self.after_update(step, optimizer)  # there are gradients now that a method may let go before it updates

        def after_update(self, step: int, optimizer: Any) -> None:
            held: list[Tensor | None] = [*self.model.parameters(), *self.model.buffers()]
            held += [parameter.grad for parameter in self.model.parameters()]
            held += [value for state in optimizer.state.values() for value in state.values()]
            found = {tensor.data_ptr(): tensor.nbytes for tensor in held if isinstance(tensor, Tensor)}
            self.most = max(self.most, sum(found.values()))

    return Counting()


def page(found: list[Line]) -> str:
    """Markdown: a table for each group."""
    text = ["# Trained from the first step", "", "Made by `benchmarks/scratch.py` from `scratch.jsonl`."]
    text += ["Differences are paired over seeds and windows, in nats per token against the first side of the group.", ""]
    for group, sides in GROUPS.items():
        own = {side: at_best(found, side) for side in sides}
        there = {side: by_seed for side, by_seed in own.items() if by_seed}
        if sides[0] in there:
            rows = [compared(side, there[sides[0]], by_seed) for side, by_seed in there.items()]
            text += [f"## {group.capitalize()}", "", HEAD, RULE, *rows, ""]
    return "\n".join(text)


def at_best(found: list[Line], side: str) -> dict[int, Line]:
    """The lines of a side's own rate by seed; none while the rate is not known."""
    best = best_rate(found, side)
    return {line["seed"]: line for line in found if line["side"] == side and line["rate"] == best}


HEAD = (
    "| side | rate | nats per token | against the first (95 % interval) | seeds x windows | numbers | trained at first "
    "| MB counted | MB measured | minutes |"
)
RULE = "|---|---|---|---|---|---|---|---|---|---|"


def compared(side: str, first: dict[int, Line], own: dict[int, Line]) -> str:
    """Means over seeds; the difference over those that both sides have."""
    both, difference = sorted(first.keys() & own.keys()), "-"
    if first is not own and both:
        difference = apart(*([lines[seed]["losses"] for seed in both] for lines in (own, first)))
    some = next(iter(own.values()))
    loss = fmean(value for line in own.values() for value in line["losses"])
    counted, peak, seconds = (sum(line[name] for line in own.values()) / len(own) for name in ("counted", "peak", "seconds"))
    cells = [f"`{side}`", f"{some['rate']:g}", f"{loss:.4f}", difference, f"{len(own)} x {len(some['losses'])}"]
    cells += [
        f"{some['parameters']:,}",
        f"{some['trained']:,}",
        f"{counted / 1e6:.1f}",
        f"{peak / 1e6:.1f}",
        f"{seconds / 60:.1f}",
    ]
    return row(cells)


def arguments() -> argparse.Namespace:
    parser = options(__doc__, "one rate, one seed, 20 steps, three sides")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--judged-windows", type=int, default=100)
    parser.add_argument("--steps", type=int, default=0, help=argparse.SUPPRESS)  # 0: as many as the shape's own course has
    parser.add_argument("--rate", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.quick:
        given.judged_windows, given.steps = 4, 20
    return given


if __name__ == "__main__":
    raise SystemExit(main())

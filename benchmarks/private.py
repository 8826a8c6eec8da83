"""What privacy costs and keeps: loss and exposure of canaries by epsilon, with bounds and noise that stay or are steered.

    python benchmarks/private.py            every line that is missing, on asset:own-5m
    python benchmarks/private.py --quick    few steps and canaries, one seed, nothing is kept: tries the plumbing

LoRA learns stories, with canaries among them (`trimtab/measure/exposure.py`), each once. `open` is the same DP-SGD with hardly
any noise and wide bounds, which promises nothing; the others spend an epsilon, with fixed bounds and noise or with an agent that
moves them (RLDP) and judges by stories that nobody trains on. Other stories still are what all are judged by. Lines go to
`private.jsonl`, and `PRIVATE.md` is made from the newest of each.
"""

import argparse
from collections.abc import Iterator
from importlib.metadata import version
from statistics import fmean, stdev
from typing import Any

from ledger import Book, Job, Line, apart, by_seed, numbers, options, row

BOOK = Book(__file__, ("model", "way", "seed"))
WAYS = ("open", "fixed 8", "steered 8", "fixed 2", "steered 2")  # how, and epsilon
METHOD, BOUND, WIDE, HARDLY = "lora(rank=8)", 0.1, 10.0, 1e-3
NUMBERS = ("rows", "steps", "batch", "length", "canaries", "interval", "rate")


def main() -> int:
    return BOOK.drive(arguments(), jobs, measured, page)


def jobs(given: argparse.Namespace) -> Iterator[Job]:
    return by_seed(given, WAYS, NUMBERS)


def measured(given: argparse.Namespace) -> Line:
    import torch

    from trimtab.anatomy import Anatomy
    from trimtab.core.recipe import Where
    from trimtab.core.seeds import Seeds
    from trimtab.data.examples import examples
    from trimtab.engine import adapting
    from trimtab.host.adapt import as_trained
    from trimtab.host.checkpoint import load
    from trimtab.host.model_assets import resolve_model
    from trimtab.host.pretrain import Course
    from trimtab.host.private import of_blocks, tune_privately
    from trimtab.host.provenance import provenance
    from trimtab.measure.exposure import canaries, exposures

    torch.set_num_threads(given.threads)
    model, tokenizer = load(resolve_model(given.model))
    assert tokenizer is not None
    stories = examples("asset:coqa", tokenizer, given.length).rows
    rows, public, judge = (stories[part * given.rows :][: given.rows // (4 if part else 1)] for part in range(3))
    planted = canaries(given.canaries, tokenizer, Seeds(given.seed))
    attached = adapting.attach(Anatomy.of(model), as_trained(METHOD), Where(), Seeds(given.seed))  # type: ignore[arg-type]
    deltas: list[Any] = [*attached.values()]
    groups = of_blocks(Anatomy.of(model), list(attached))
    before = judged(model, judge, planted)
    course = Course(given.steps, given.batch, given.length, given.rate, 0.0, given.seed)
    learned = [*rows, *(canary.row for canary in planted)]
    privacy = asked(given.one, given.interval)
    draw = Seeds(given.seed).at("noise")  # known, so that a line can be made again; a promise needs one that nobody knows
    stamp = provenance()
    spent = tune_privately(model, deltas, learned, course, privacy, draw, public=public, groups=groups)
    return {
        "steps_taken": spent.steps,
        "epsilon": spent.epsilon,
        "noise": spent.noise,
        "moves": spent.moves,
        **judged(model, judge, planted),
        "exposure": exposures(model, planted).tolist(),
        "before": before,
        "setting": {"method": METHOD, "bound": privacy.bound, "delta": privacy.delta} | numbers(given, *NUMBERS, "threads"),
        **stamp,
        "versions": {**stamp["versions"], "opacus": version("opacus")},
    }


def asked(way: str, interval: int) -> Any:
    """The `Privacy` of a way."""
    from trimtab.host.private import Privacy

    kind, _, epsilon = way.partition(" ")
    if kind == "open":
        return Privacy(noise=HARDLY, bound=WIDE, epsilon=None)
    return Privacy(bound=BOUND, epsilon=float(epsilon), steered=interval if kind == "steered" else 0)


def judged(model: Any, judge: Any, planted: Any) -> dict[str, list[float]]:
    """judged: nats per token of every story; canaries: nats of every secret."""
    from trimtab.host.trainer import validation_loss
    from trimtab.measure.exposure import row_losses

    return {
        "judged": [validation_loss(model, [row]) for row in judge],
        "canaries": row_losses(model, [canary.row for canary in planted]).tolist(),
    }


def page(found: list[Line]) -> str:
    from trimtab.measure.exposure import unseen

    text = ["# Private adaptation", "", "Made by `benchmarks/private.py` from `private.jsonl`, not edited by hand.", ""]
    for model in sorted({line["model"] for line in found}):
        own = [line for line in found if line["model"] == model]
        text += [f"## {model}", "", about(own[0], unseen(255)), "", HEAD, RULE, *table(own), ""]
    return "\n".join(text)


HEAD = "| way | epsilon | steps | learned, nats (95 % interval) | exposure, bits ± standard error | seeds |"
RULE = "|---|---|---|---|---|---|"


def about(line: Line, nothing: float) -> str:
    setting = line["setting"]
    return (
        f"`{setting['method']}`, {setting['rows']} stories of {setting['length']} tokens and {setting['canaries']} canaries, "
        f"{setting['steps']} steps of {setting['batch']} rows or so, delta {setting['delta']:g}. Learned: the loss on "
        f"{len(line['judged'])} other stories less that before; lower is better. Exposure: at most 8 bits, and {nothing:.2f} "
        f"in the mean where nothing was learned of a canary."
    )


def table(own: list[Line]) -> list[str]:
    rows = []
    for way in (way for way in WAYS if any(line["way"] == way for line in own)):
        some = [line for line in own if line["way"] == way]
        bits = [value for line in some for value in line["exposure"]]
        error = stdev(bits) / len(bits) ** 0.5
        epsilon = max(line["epsilon"] for line in some)
        cells = (
            way,
            f"{epsilon:.2f}" if way != "open" else "no promise",
            f"{fmean(line['steps_taken'] for line in some):.0f}",
            apart([line["judged"] for line in some], [line["before"]["judged"] for line in some]),
            f"{fmean(bits):.2f} ± {error:.2f}",
            len(some),
        )
        rows.append(row(cells))
    return rows


def arguments() -> argparse.Namespace:
    parser = options(__doc__, "few steps and canaries, one seed")
    parser.add_argument("--model", default="asset:own-5m")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=800, help="stories to learn; a quarter as many to steer by, and to judge by")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--canaries", type=int, default=32)
    parser.add_argument("--interval", type=int, default=15, help="steps between moves of the agent")
    parser.add_argument("--rate", type=float, default=3e-3)
    given = parser.parse_args()
    if given.quick:
        given.seeds, given.rows, given.steps, given.batch, given.canaries, given.interval = 1, 16, 4, 4, 3, 2
    return given


if __name__ == "__main__":
    raise SystemExit(main())

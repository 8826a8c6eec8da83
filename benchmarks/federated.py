"""Clients with data and ranks of their own: changes that are stacked (FLoRA) against factors that are averaged (FedAvg).

    python benchmarks/federated.py            every line that is missing, on asset:own-5m
    python benchmarks/federated.py --quick    few steps, one rate, round and seed, nothing is kept: tries the plumbing

Four clients, each with another kind of text, go through some rounds; `trimtab.host.federated` is what a federation runs, here in
one process. Both ways get the same rows and steps, and the rate of three with the best loss on rows held out of all kinds; they
are judged by others still. With `faults` a client sends numbers that are not finite in the first round and another one falls out
of the last: the loss is to stay near that of the same way without. Lines go to `federated.jsonl`, and `FEDERATED.md` is made from
the newest of each.
"""

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from ledger import WORK, Book, Job, Line, apart, by_seed, numbers, options, row

BOOK = Book(__file__, ("model", "way", "seed"))
KINDS = ("gsm8k", "coqa", "boolq", "squad-drop")
OWN, SAME = (4, 8, 16, 32), (16, 16, 16, 16)
WAYS = {
    "stacked, ranks 4 8 16 32": ("stacked", OWN, False),
    "averaged, ranks 4 8 16 32": ("averaged", OWN, False),
    "stacked, ranks 16": ("stacked", SAME, False),
    "averaged, ranks 16": ("averaged", SAME, False),
    "stacked, ranks 4 8 16 32, faults": ("stacked", OWN, True),
}
RATES, LENGTH, SHARES = (3e-4, 1e-3, 3e-3), 128, (0.6, 0.2, 0.2)  # to learn, to choose a rate by, to judge by
NUMBERS = ("rows", "rounds", "steps", "batch", "rates")


def main() -> int:
    return BOOK.drive(arguments(), jobs, measured, page)


def jobs(given: argparse.Namespace) -> Iterator[Job]:
    return by_seed(given, WAYS, NUMBERS)


def written(kind: str, rows: int) -> list[Path]:
    """Texts of one kind in three .jsonl files, as `SHARES` says."""
    from trimtab.data.text import documents

    texts, files, start = documents(f"asset:{kind}")[:rows], [], 0
    for name, share in zip(("learn", "choose", "judge"), SHARES, strict=True):
        part = texts[start : start + max(2, round(share * rows))]
        start += len(part)
        file = WORK / f"federated-{kind}-{name}.jsonl"
        file.write_text("\n".join(json.dumps({"text": text}) for text in part), encoding="utf-8")
        files.append(file)
    return files


def measured(given: argparse.Namespace) -> Line:
    import torch

    from trimtab.host.federated import Terms
    from trimtab.host.pretrain import Course
    from trimtab.host.provenance import provenance

    torch.set_num_threads(given.threads)
    files = [written(kind, given.rows) for kind in KINDS]
    found = []
    for rate in RATES[: given.rates]:
        terms = Terms(given.model, Course(given.steps, given.batch, LENGTH, rate, 0.0, given.seed))
        change, refused = rounds(terms, [str(learn) for learn, _, _ in files], given.one, given.rounds)
        chosen_by = fmean(value for values in losses(terms, change, [file for _, file, _ in files]) for value in values)
        found.append((chosen_by, rate, terms, change, refused))
    chosen_by, rate, terms, change, refused = min(found, key=lambda one: one[0])
    judge = [file for _, _, file in files]
    return {
        "rate": rate,
        "apart": {str(one[1]): one[0] for one in found},
        "judged": dict(zip(KINDS, losses(terms, change, judge), strict=True)),
        "before": dict(zip(KINDS, losses(terms, {}, judge), strict=True)),
        "refused": refused,
        "rank": next(iter(change.values()))[0].shape[1],
        "setting": {"length": LENGTH} | numbers(given, *NUMBERS, "threads"),
        **provenance(),
    }


def rounds(terms: Any, data: Sequence[str], way: str, count: int) -> tuple[Any, list[dict[str, str]]]:
    """(the change after all of them, by round who was left out and why)"""
    from trimtab.host.federated import Client, joined, layers, learn
    from trimtab.tensors.federated import averaged, stacked

    how, ranks, faults = WAYS[way]
    change, refused, wanted = {}, [], layers(terms)
    for turn in range(count):
        uploads = {
            kind: learn(terms, Client(source, rank), number, turn, change)
            for number, (kind, source, rank) in enumerate(zip(KINDS, data, ranks, strict=True))
            if not (faults and turn == count - 1 and number == 2)
        }
        if faults and turn == 0:
            uploads[KINDS[1]] = spoiled(uploads[KINDS[1]])
        change, out = joined(wanted, change, uploads, {"stacked": stacked, "averaged": averaged}[how])
        refused.append(out)
    return change, refused


def spoiled(upload: Any) -> Any:
    """The same with one factor full of numbers that are not finite."""
    path, (left, right) = next(iter(upload.change.items()))
    return replace(upload, change={**upload.change, path: (left * float("nan"), right)})


def losses(terms: Any, change: Any, files: Sequence[Path]) -> list[list[float]]:
    """For every kind nats per token of every row."""
    from trimtab.data.examples import examples
    from trimtab.engine import adapting
    from trimtab.formats.deltas import LowRankDelta
    from trimtab.host import checkpoint
    from trimtab.host.trainer import validation_loss

    model, tokenizer = checkpoint.load(terms.folder)
    assert tokenizer is not None
    adapting.beside(model, {path: LowRankDelta(*factors) for path, factors in change.items()})
    return [[validation_loss(model, [row]) for row in examples(file, tokenizer, terms.course.length).rows] for file in files]


HEAD = "| way | rate | learned, nats (95 % interval) | against stacked with the same ranks | rank | left out | seeds |"
RULE = "|---|---|---|---|---|---|---|"


def page(found: list[Line]) -> str:
    text = ["# Federated adaptation", "", "Made by `benchmarks/federated.py` from `federated.jsonl`, not edited by hand.", ""]
    for model in sorted({line["model"] for line in found}):
        own = [line for line in found if line["model"] == model]
        text += [f"## {model}", "", about(own[0]), "", HEAD, RULE, *table(own), ""]
    return "\n".join(text)


def about(line: Line) -> str:
    setting = line["setting"]
    return (
        f"Four clients ({', '.join(KINDS)}), {setting['rounds']} rounds of {setting['steps']} steps of {setting['batch']} rows "
        f"of up to {setting['length']} tokens. Learned: the loss on {sum(map(len, line['judged'].values()))} rows of all kinds "
        f"less that before; lower is better, and differences above 0 are worse. Left out: uploads that could not be used."
    )


def table(own: list[Line]) -> list[str]:
    rows = []
    for way in (way for way in WAYS if any(line["way"] == way for line in own)):
        some = {line["seed"]: line for line in own if line["way"] == way}
        best = {line["seed"]: line for line in own if line["way"] == f"stacked, {way.split(', ')[1]}"}
        both = [seed for seed in some if seed in best]
        cells = (
            way,
            ", ".join(sorted({f"{line['rate']:g}" for line in some.values()})),
            apart(judged(some.values()), judged(some.values(), of="before")),
            apart(*(judged(side[seed] for seed in both) for side in (some, best))) if both and some != best else "",
            max(line["rank"] for line in some.values()),
            sum(len(out) for line in some.values() for out in line["refused"]),
            len(some),
        )
        rows.append(row(cells))
    return rows


def judged(lines: Iterable[Line], of: str = "judged") -> list[list[float]]:
    """[lines, rows] of all kinds."""
    return [[value for kind in KINDS for value in line[of][kind]] for line in lines]


def arguments() -> argparse.Namespace:
    parser = options(__doc__, "few steps, one rate, round and seed")
    parser.add_argument("--model", default="asset:own-5m")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=200, help="texts of every client, three fifths of them to learn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30, help="of a client in a round")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rates", type=int, default=len(RATES), choices=range(1, len(RATES) + 1), help="learning rates tried")
    given = parser.parse_args()
    if given.quick:
        given.seeds, given.rows, given.rounds, given.steps, given.batch, given.rates = 1, 10, 2, 2, 2, 1
    return given


if __name__ == "__main__":
    raise SystemExit(main())

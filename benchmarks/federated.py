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
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import ledger
from gauge import hand_over, use_threads, versions

HERE = Path(__file__).resolve().parent
WORK = HERE.parent / "build" / "bench"
LEDGER, PAGE = HERE / "federated.jsonl", HERE / "FEDERATED.md"
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
NUMBERS = ("rows", "rounds", "steps", "batch", "rates", "threads")


def main() -> int:
    given = arguments()
    if given.one is not None:
        use_threads(given.threads)
        hand_over(given.result, measured(given))
        return 0
    WORK.mkdir(parents=True, exist_ok=True)
    failed = sum(not run(given, way, seed) for way, seed in wanted(given))
    if not given.quick and LEDGER.exists():
        PAGE.write_text(page(lines()), encoding="utf-8")
    return 1 if failed else 0


def lines() -> list[ledger.Line]:
    return ledger.newest(LEDGER, "model", "way", "seed")


def wanted(given: argparse.Namespace) -> Iterator[tuple[str, int]]:
    there = set() if given.quick else {(one["way"], one["seed"]) for one in lines() if one["model"] == given.model}
    return ((way, seed) for seed in range(given.seeds) for way in WAYS if (way, seed) not in there)


def run(given: argparse.Namespace, way: str, seed: int) -> bool:
    print(f"seed {seed}: {way} ...", file=sys.stderr)
    options = ["--seed", seed, "--model", given.model, *(f"--{name}={getattr(given, name)}" for name in NUMBERS)]
    found = ledger.measure(__file__, way, options, WORK)
    if found is not None:
        ledger.keep(LEDGER, {"model": given.model, "way": way, "seed": seed, **found}, given.quick)
    return found is not None


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


def measured(given: argparse.Namespace) -> ledger.Line:
    import torch

    from trimtab.host.federated import Terms
    from trimtab.host.pretrain import Course
    from trimtab.host.provenance import commit, machine

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
        "setting": {"length": LENGTH} | {name: getattr(given, name) for name in NUMBERS},
        "commit": commit(),
        "machine": machine(),
        "versions": versions("trimtab", "torch", "transformers"),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def rounds(terms: Any, data: Sequence[str], way: str, count: int) -> tuple[Any, list[dict[str, str]]]:
    """(the change after all of them, by round who was left out and why)"""
    from trimtab.host.federated import Client, joined, learn
    from trimtab.tensors.federated import averaged, stacked

    how, ranks, faults = WAYS[way]
    change, refused = {}, []
    for turn in range(count):
        uploads = {
            kind: learn(terms, Client(source, rank), number, turn, change)
            for number, (kind, source, rank) in enumerate(zip(KINDS, data, ranks, strict=True))
            if not (faults and turn == count - 1 and number == 2)
        }
        if faults and turn == 0:
            uploads[KINDS[1]] = spoiled(uploads[KINDS[1]])
        change, out = joined(change, uploads, {"stacked": stacked, "averaged": averaged}[how])
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


def page(found: list[ledger.Line]) -> str:
    text = ["# Federated adaptation", "", "Made by `benchmarks/federated.py` from `federated.jsonl`, not edited by hand.", ""]
    for model in sorted({line["model"] for line in found}):
        own = [line for line in found if line["model"] == model]
        text += [f"## {model}", "", about(own[0]), "", HEAD, RULE, *table(own), ""]
    return "\n".join(text)


def about(line: ledger.Line) -> str:
    setting = line["setting"]
    return (
        f"Four clients ({', '.join(KINDS)}), {setting['rounds']} rounds of {setting['steps']} steps of {setting['batch']} rows "
        f"of up to {setting['length']} tokens. Learned: the loss on {sum(map(len, line['judged'].values()))} rows of all kinds "
        f"less that before; lower is better, and differences above 0 are worse. Left out: uploads that could not be used."
    )


def table(own: list[ledger.Line]) -> list[str]:
    rows = []
    for way in (way for way in WAYS if any(line["way"] == way for line in own)):
        some = {line["seed"]: line for line in own if line["way"] == way}
        best = {line["seed"]: line for line in own if line["way"] == f"stacked, {way.split(', ')[1]}"}
        both = [seed for seed in some if seed in best]
        cells = (
            way,
            ", ".join(sorted({f"{line['rate']:g}" for line in some.values()})),
            apart([(line["judged"], line["before"]) for line in some.values()]),
            apart([(some[seed]["judged"], best[seed]["judged"]) for seed in both]) if both and some != best else "",
            max(line["rank"] for line in some.values()),
            sum(len(out) for line in some.values() for out in line["refused"]),
            len(some),
        )
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return rows


def apart(pairs: Sequence[tuple[dict[str, list[float]], dict[str, list[float]]]]) -> str:
    """The mean of one less the other, row by row."""
    import torch

    from trimtab.measure.paired import paired_difference

    one, other = (torch.tensor([[x for kind in KINDS for x in pair[side][kind]] for pair in pairs]) for side in (0, 1))
    found = paired_difference(one, other)
    return f"{found.difference:+.4f} ({found.low:+.4f} to {found.high:+.4f})"


def arguments() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default="asset:own-5m")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--quick", action="store_true", help="few steps, one rate, round and seed; nothing is kept")
    options.add_argument("--rows", type=int, default=200, help="texts of every client, three fifths of them to learn")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--steps", type=int, default=30, help="of a client in a round")
    options.add_argument("--batch", type=int, default=4)
    options.add_argument("--rates", type=int, default=len(RATES), choices=range(1, len(RATES) + 1), help="learning rates tried")
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--one", help=argparse.SUPPRESS)
    options.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    options.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.quick:
        given.seeds, given.rows, given.rounds, given.steps, given.batch, given.rates = 1, 10, 2, 2, 2, 1
    return given


if __name__ == "__main__":
    raise SystemExit(main())

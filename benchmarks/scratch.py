"""Training from the first step with something else in the place of matrices: loss, numbers, memory, at equal tokens.

    python benchmarks/scratch.py            every side, rate and seed that has no line yet
    python benchmarks/scratch.py --quick    one rate, one seed, 20 steps, two sides: tries the plumbing, nothing is kept

Every side is the shape of own-2m on its text and tokens. Its learning rate is the one of four with the best loss on rows held
out of that text, seed 0; the other seeds are run with that one. What is shown is the loss on text of another kind. One process
for each training; lines are appended to `scratch.jsonl`, a run that was stopped goes on, and `SCRATCH.md` is made from them.

Sides of one group hold equally many numbers in the end, up to rounding. Memory of training is counted after every update
(parameters, buffers, gradients, optimizer; the most there was) and measured (most resident memory during the training, less what
was resident before it: activations are in that, too).
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gauge import Gauge, hand_over, use_threads, versions

HERE = Path(__file__).resolve().parent
WORK = HERE.parent / "build" / "bench"
LEDGER, PAGE = HERE / "scratch.jsonl", HERE / "SCRATCH.md"
MODEL, JUDGED, HELD_OUT = "own-2m", "asset:boolq", 0.02
RATES = (1e-3, 2e-3, 4e-3, 8e-3)
DENSE = "dense"  # followed by a number: with so many blocks
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
    ),
    "a twelfth of the numbers in the blocks": ("low_rank(keep=0.092)", "learned_butterfly", "sltrain(keep=0.092)"),
    "all numbers, some trained at a time": (
        "dense 4",
        f"sst(rank=32, {AT_A_TIME})",
        "relora(rank=32, every=75, warm_up=5)",
        "galore(rank=32, every=75)",
    ),
}
NUMBERS = ("judged_windows", "threads")


def main() -> int:
    given = arguments()
    if given.one is not None:
        use_threads(given.threads)
        hand_over(given.result, measured(given))
        return 0
    WORK.mkdir(parents=True, exist_ok=True)
    sides = [side for group in GROUPS.values() for side in group][: 3 if given.quick else None]
    failed = sum(not run(given, side, rate, seed) for side in sides for rate, seed in wanted(given, side))
    if not given.quick and LEDGER.exists():
        PAGE.write_text(page(lines()), encoding="utf-8")
    return 1 if failed else 0


def wanted(given: argparse.Namespace, side: str) -> Iterator[tuple[float, int]]:
    """(rate, seed) of what has no line; the later ones depend on what the lines of the first seed say by then."""
    if given.quick:
        yield RATES[1], 0
        return
    for rate in RATES:
        if (side, rate, 0) not in known():
            yield rate, 0
    best = best_rate(lines(), side)
    for seed in range(1, given.seeds):
        if best is not None and (side, best, seed) not in known():
            yield best, seed


def best_rate(found: list[dict[str, Any]], side: str) -> float | None:
    """By the loss on the rows held out, of the first seed; None while a rate is missing."""
    first = {line["rate"]: line["validation"] for line in found if line["side"] == side and line["seed"] == 0}
    return min(first, key=lambda rate: first[rate]) if first.keys() >= set(RATES) else None


def run(given: argparse.Namespace, side: str, rate: float, seed: int) -> bool:
    """One training in a process of its own; whether it came to an end."""
    result = WORK / "scratch.json"
    result.unlink(missing_ok=True)
    print(f"seed {seed}, rate {rate:g}: {side} ...", file=sys.stderr)
    numbers = [f"--{name.replace('_', '-')}={getattr(given, name)}" for name in NUMBERS]
    command = [sys.executable, __file__, "--one", side, "--rate", rate, "--seed", seed, "--result", result, *numbers]
    command += ["--quick"] if given.quick else []
    with (WORK / "scratch.log").open("a", encoding="utf-8") as log:
        done = subprocess.run([*map(str, command)], stdout=log, stderr=log, check=False)
    if done.returncode:
        print(f"{side} did not finish, see {log.name}", file=sys.stderr)
        return False
    line = {"side": side, "rate": rate, "seed": seed, **json.loads(result.read_text(encoding="utf-8"))}
    if given.quick:
        print(json.dumps({name: value for name, value in line.items() if name != "losses"}))
    else:
        with LEDGER.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    return True


def measured(given: argparse.Namespace) -> dict[str, Any]:
    import torch

    from trimtab.data.examples import Examples, held_out
    from trimtab.data.windows import evaluation_windows
    from trimtab.host.homegrown import named, reading, untrained
    from trimtab.host.provenance import commit, machine
    from trimtab.host.scratch import as_scratch, changed, teach, text_rows
    from trimtab.host.trainer import validation_loss
    from trimtab.measure.perplexity import token_losses
    from trimtab.tensors.products import fast_products

    torch.set_num_threads(given.threads)
    kind, _, blocks = given.one.partition(" ") if given.one.startswith(DENSE) else ("", "", "")
    grown = named(MODEL).grown
    course = changed(grown.course, 20 if given.quick else None, given.rate, given.seed)
    grown = replace(grown, course=course, layers=int(blocks) if kind else grown.layers)
    method, gauge, memory = None if kind else as_scratch(given.one), Gauge(), counting()
    with gauge("prepare"):
        tokenizer, texts = reading(grown)
        rows, apart = held_out(Examples(tuple(text_rows(texts, tokenizer, course.length))), HELD_OUT, 0)
        model = memory.model = untrained(grown)
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
        "setting": {"model": MODEL, "judged": JUDGED, **{name: getattr(given, name) for name in NUMBERS}},
        "commit": commit(),
        "machine": machine(),
        "versions": versions("trimtab", "torch", "transformers"),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def counting() -> Any:
    """A hook whose `most` is the most bytes that parameters, buffers, gradients and the optimizer's states held together."""
    from torch import Tensor

    from trimtab.core.trained import Hook

    class Counting(Hook):
        model: Any = None
        most = 0

        def after_update(self, step: int, optimizer: Any) -> None:
            held: list[Tensor | None] = [*self.model.parameters(), *self.model.buffers()]
            held += [parameter.grad for parameter in self.model.parameters()]
            held += [value for state in optimizer.state.values() for value in state.values()]
            found = {tensor.data_ptr(): tensor.nbytes for tensor in held if isinstance(tensor, Tensor)}
            self.most = max(self.most, sum(found.values()))

    return Counting()


def lines() -> list[dict[str, Any]]:
    """The newest line of every side, rate and seed."""
    if not LEDGER.exists():
        return []
    found = map(json.loads, LEDGER.read_text(encoding="utf-8").splitlines())
    return [*{(line["side"], line["rate"], line["seed"]): line for line in found}.values()]


def known() -> set[tuple[str, float, int]]:
    return {(line["side"], line["rate"], line["seed"]) for line in lines()}


def page(found: list[dict[str, Any]]) -> str:
    """Markdown: a table for each group."""
    text = ["# Trained from the first step", "", "Made by `benchmarks/scratch.py` from `scratch.jsonl`."]
    text += ["Differences are paired over seeds and windows, in nats per token against the first side of the group.", ""]
    for group, sides in GROUPS.items():
        own = {side: at_best(found, side) for side in sides}
        there = {side: by_seed for side, by_seed in own.items() if by_seed}
        if sides[0] in there:
            rows = [row(side, there[sides[0]], by_seed) for side, by_seed in there.items()]
            text += [f"## {group.capitalize()}", "", HEAD, RULE, *rows, ""]
    return "\n".join(text)


def at_best(found: list[dict[str, Any]], side: str) -> dict[int, dict[str, Any]]:
    """The lines of a side's own rate by seed; none while the rate is not known."""
    best = best_rate(found, side)
    return {line["seed"]: line for line in found if line["side"] == side and line["rate"] == best}


HEAD = (
    "| side | rate | nats per token | against the first (95 % interval) | seeds x windows | numbers | trained at first "
    "| MB counted | MB measured | minutes |"
)
RULE = "|---|---|---|---|---|---|---|---|---|---|"


def row(side: str, first: dict[int, dict[str, Any]], own: dict[int, dict[str, Any]]) -> str:
    """Means over seeds; the difference over those that both sides have."""
    import torch

    from trimtab.measure.paired import paired_difference

    both, apart = sorted(first.keys() & own.keys()), "-"
    if first is not own and both:
        left, right = (torch.tensor([lines_of[seed]["losses"] for seed in both]) for lines_of in (own, first))
        difference = paired_difference(left, right)
        apart = f"{difference.difference:+.4f} ({difference.low:+.4f} to {difference.high:+.4f})"
    some = next(iter(own.values()))
    loss = torch.tensor([line["losses"] for line in own.values()]).mean()
    counted, peak, seconds = (sum(line[name] for line in own.values()) / len(own) for name in ("counted", "peak", "seconds"))
    cells = [f"`{side}`", f"{some['rate']:g}", f"{loss:.4f}", apart, f"{len(own)} x {len(some['losses'])}"]
    cells += [
        f"{some['parameters']:,}",
        f"{some['trained']:,}",
        f"{counted / 1e6:.1f}",
        f"{peak / 1e6:.1f}",
        f"{seconds / 60:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def arguments() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--quick", action="store_true", help="try the plumbing; nothing is kept")
    options.add_argument("--judged-windows", type=int, default=100)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--one", help=argparse.SUPPRESS)
    options.add_argument("--rate", type=float, help=argparse.SUPPRESS)
    options.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    options.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.quick:
        given.judged_windows = 4
    return given


if __name__ == "__main__":
    sys.exit(main())

"""All ways to adapt, side by side: what is learned, what is forgotten, seconds per step, memory. Equal trained parameters.

    python benchmarks/adapt.py                              every line that is missing, on asset:own-5m
    python benchmarks/adapt.py --model asset:smollm2-135m   another model
    python benchmarks/adapt.py --only spiel answers         recipes and tasks that have one of these words in them
    python benchmarks/adapt.py --quick                      few steps, one rate and seed, nothing is kept: tries the plumbing

Two tasks: `answers` (arithmetic, of which the solutions alone are learned) and `style` (stories, every token). Every method gets
the same rows and steps, the rate with the best loss on rows held out (of three, and further ones where the best is at an end of
these; found with the first seed, taken over by the others), and a size with which it trains about as many parameters as
`lora(rank=8)`, where it has a size that reaches so far: `lisa` (with all blocks: full fine-tuning) and `weight_compander` train
more, `nola` and `sketchtune` what they are made for; the page says how many. One process for each recipe, task and seed; lines go
to `adapt.jsonl`, a run that was stopped goes on, and `ADAPT.md` is made from the newest of each. What is learned is the
loss on rows that nothing was chosen by, what is forgotten that on general text, both against the base as it came. Memory is
counted, not watched: parameters and buffers, gradients and states of the optimizer, at the step where they are most.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from math import inf, isfinite
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import Any

from ledger import WORK, Book, Job, Line, apart, numbers, options, row

BOOK = Book(__file__, ("model", "recipe", "task", "seed"))
GENERAL, LENGTH, RATES = "asset:boolq", 256, (3e-4, 1e-3, 3e-3)
BUDGET = "lora(rank=8)"
RANKS, SHARES = tuple(range(1, 129)), tuple(0.0005 * 1.05**power for power in range(156))
COUNTS = tuple(range(64, 8193, 64))
# Where there is a place for a size, which sizes; and how much of what is attached is trained in the end.
METHODS: dict[str, tuple[tuple[float, ...], float]] = {
    BUDGET: ((), 1.0),
    "rslora(rank={})": (RANKS, 1.0),
    "allora(rank={})": (RANKS, 1.0),
    "dora(rank={})": (RANKS, 1.0),
    "pissa(rank={})": (RANKS, 1.0),
    "bone(rank={})": (RANKS, 1.0),
    "adapter_series(width={})": (RANKS, 1.0),
    "adapter_parallel(width={})": (RANKS, 1.0),
    "s2ft(share={})": (SHARES, 1.0),
    "spiel(density={})": (SHARES, 1.0),
    "spiel(density={}, growth='momentum')": (SHARES, 1.0),
    "spiel(density={}, growth='none')": (SHARES, 1.0),
    "ist(rank={})": (RANKS, 1.0),
    "ist(rank={}, pace=0.0)": (RANKS, 1.0),
    "diffora(rank={})": (RANKS, 4 / 7),  # half of seven matrices in a block, and a shared pair for every kind
    "diffora(rank={}, choose='any')": (RANKS, 4 / 7),
    "diffora(rank={}, choose='narrowest')": (RANKS, 4 / 7),
    "ewc_lora(rank={})": (RANKS, 1.0),
    "corda(rank={})": (RANKS, 1.0),
    "corda(rank={}, mode='kpm')": (RANKS, 1.0),
    "hut(rank={})": (RANKS, 1.0),
    "wara(rank={})": (RANKS, 1.0),
    "snella(rank={})": (RANKS[1:], 1.0),
    "tera(rank={})": (RANKS[:64], 1.0),
    "queryable_lora(rank={})": (RANKS, 1.0),
    "randlora(rank={})": (RANKS[::-1], 1.0),  # a smaller rank is more parameters
    "fouriermoe(frequencies={})": (COUNTS, 1.0),
    "hy_wu(width={})": (RANKS[3:], 1.0),
    "nola(bases=128)": ((), 1.0),
    "sketchtune(bits=4)": ((), 1.0),
    "weight_compander()": ((), 1.0),
    "lisa(active=2)": ((), 1.0),
    "lisa(active=1000)": ((), 1.0),
}
FEW_FIT = ("bone(rank={})",)  # sizes that divide all matrices
BASES = ("gptq(bits=3, clip=True)", "wanda(pattern='2:4') -> lqer(rank=16)", "flap(sparsity=0.2)")
KINDS = ("learned", "general")  # losses, after the training and before it
NUMBERS = ("rows", "steps", "batch", "windows", "rates")


def main() -> int:
    return BOOK.drive(arguments(), jobs, measured, page)


def jobs(given: argparse.Namespace) -> Iterator[Job]:
    asked = numbers(given, "model", *NUMBERS)
    for seed in range(given.seeds):
        for task in TASKS:
            for recipe in recipes():
                if not given.only or any(word in recipe or word == task for word in given.only):
                    fields = {"model": given.model, "recipe": recipe, "task": task, "seed": seed}
                    yield Job(recipe, fields, {"task": task, "seed": seed, **asked, **found_rate(fields)})


def found_rate(fields: dict[str, Any]) -> dict[str, float]:
    """What the process of a later seed is told: the rate that was best with the first."""
    first = {**fields, "seed": 0}
    rates = [line["rate"] for line in BOOK.lines() if fields["seed"] and BOOK.place(line) == BOOK.place(first)]
    return {"rate": rates[0]} if rates else {}


def recipes() -> list[str]:
    """Methods beside the model as it came, and LoRA beside compressed ones."""
    return [*METHODS, *(f"{base} -> {BUDGET}" for base in BASES)]


def answers() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """(to learn, to judge by) arithmetic, the problem and its solution."""
    from trimtab.data.text import documents

    def pairs(source: str) -> list[dict[str, str]]:
        parted = (text.partition("\n") for text in documents(source))
        return [{"prompt": question + "\n", "completion": solution} for question, _, solution in parted]

    return pairs("asset:gsm8k"), pairs("asset:gsm8k-rest")


def style() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """(to learn, to judge by) stories; the last fifth is to judge by."""
    from trimtab.data.text import documents

    texts = [{"text": text} for text in documents("asset:coqa")]
    return texts[: len(texts) * 4 // 5], texts[len(texts) * 4 // 5 :]


TASKS = {"answers": answers, "style": style}


def written(task: str, rows: int) -> tuple[Path, Path]:
    """The two parts of a task as .jsonl files, of so many lines at most."""
    found = []
    for name, entries in zip(("learn", "judge"), TASKS[task](), strict=True):
        file = WORK / f"adapt-{task}-{name}.jsonl"
        file.write_text("\n".join(map(json.dumps, entries[:rows])), encoding="utf-8")
        found.append(file)
    return found[0], found[1]


def measured(given: argparse.Namespace) -> Line:
    import torch

    from trimtab import Recipe
    from trimtab.host.model_assets import resolve_model
    from trimtab.host.pretrain import Course
    from trimtab.host.provenance import provenance
    from trimtab.host.source import history
    from trimtab.host.tuned import DivergedError
    from trimtab.measure.rates import next_rate
    from trimtab.measure.tuned_sides import taught

    torch.set_num_threads(given.threads)
    folder = resolve_model(given.model)
    expression = sized(given.one, folder)
    recipe = Recipe.of(expression, seed=given.seed)
    learn, judge = written(given.task, given.rows)
    found: Line = {}
    losses: dict[float, float] = {}
    while (rate := next_rate(losses, [given.rate] if given.rate else RATES[: given.rates])) is not None:
        course = Course(given.steps, given.batch, LENGTH, rate, 0.0, given.seed)
        weighed = weighing()
        try:
            one = taught(folder, recipe, course, str(learn), beside=[weighed])
        except DivergedError:
            losses[rate] = inf
            continue
        judged = judgements(one.model, one.tokenizer, judge, given.windows)
        losses[rate] = one.apart
        if one.apart == min(losses.values()):
            stored = (t.untyped_storage() for t in (*one.model.parameters(), *one.model.buffers()))
            held = sum({place.data_ptr(): place.nbytes() for place in stored}.values())  # matrices may share one
            figures = {"rate": rate, "parameters": one.parameters, "bits": one.bits, "seconds_per_step": weighed.seconds}
            memory = {"weights": held, "gradients_and_states": weighed.most}
            found = {**figures, **memory, "curve": one.done.losses, **judged}
    return {
        "used": expression,
        **found,
        "apart": {str(rate): loss for rate, loss in losses.items()},
        "before": before(folder, replace(recipe, steps=recipe.steps[:-1]) if recipe.steps[1:] else None, judge, given.windows),
        "setting": {"history": history(Path(folder)), "general": GENERAL, "length": LENGTH} | numbers(given, *NUMBERS, "threads"),
        **provenance(),
    }


def sized(expression: str, folder: Any) -> str:
    """With the size that trains as many parameters as `BUDGET` does, or as near as there is one."""
    sizes, share = METHODS.get(expression, ((), 1.0))
    if not sizes:
        return expression
    from bisect import bisect_left

    from trimtab.anatomy import Anatomy
    from trimtab.host.checkpoint import load

    anatomy = Anatomy.of(load(folder)[0])
    budget = trained(anatomy, BUDGET) / share
    if expression in FEW_FIT:
        sizes = tuple(size for size in sizes if isfinite(trained(anatomy, expression.format(size))))
    at = bisect_left(sizes, budget, key=lambda size: trained(anatomy, expression.format(size)))
    near = sizes[max(0, at - 1) : at + 1]
    best = min(near, key=lambda size: abs(trained(anatomy, expression.format(size)) - budget))
    return expression.format(best)


def trained(anatomy: Any, expression: str) -> float:
    """How many numbers are trained; infinitely many where a matrix is too small for the size."""
    import torch

    from trimtab.core.errors import UsageError
    from trimtab.core.recipe import Where
    from trimtab.core.seeds import Seeds
    from trimtab.engine import adapting
    from trimtab.host.adapt import as_trained

    something = torch.arange(64)[None]  # token ids, for those that look at inputs first
    try:
        deltas = adapting.attach(anatomy, as_trained(expression), Where(), Seeds(0), [something])  # type: ignore[arg-type]
    except UsageError:
        return float("inf")
    own = {id(p): p.numel() for delta in deltas.values() for p in delta.parameters() if p.requires_grad}  # some are of several
    adapting.detach(anatomy.model)
    return sum(own.values())


def weighing() -> Any:
    """A hook that counts the bytes of gradients and states, and the seconds of steps without a validation behind them."""
    from trimtab.core.trained import Hook

    class Weighing(Hook):
        most, begun, spans = 0, 0.0, 0
        total = 0.0

        @property
        def seconds(self) -> float:
            return self.total / max(1, self.spans)

        def before_step(self, step: int, optimizer: Any) -> None:
            now = perf_counter()
            if step and step % self.every:
                self.total, self.spans = self.total + now - self.begun, self.spans + 1
            self.begun = now

        def begin(self, training: Any) -> None:
            self.every = max(1, training.steps // 4)  # as `taught` validates

        def after_update(self, step: int, optimizer: Any) -> None:
            moved = [p for group in optimizer.param_groups for p in group["params"]]
            tensors = [p.grad for p in moved if p.grad is not None]
            tensors += [value for state in optimizer.state.values() for value in state.values()]
            self.most = max(self.most, sum(t.numel() * t.element_size() for t in tensors))

    return Weighing()


def judgements(model: Any, tokenizer: Any, judge: Path, windows: int) -> dict[str, list[float]]:
    """learned: nats per learned token of every row of the task; general: nats per token of every window."""
    from trimtab.data.examples import examples
    from trimtab.data.windows import evaluation_windows
    from trimtab.host.trainer import validation_loss
    from trimtab.measure.perplexity import token_losses

    rows = examples(str(judge), tokenizer, LENGTH).rows[:windows]
    text = evaluation_windows(GENERAL, tokenizer, windows, LENGTH, 0)
    return {"learned": [validation_loss(model, [row]) for row in rows], "general": token_losses(model, text).mean(1).tolist()}


def before(folder: Any, recipe: Any, judge: Path, windows: int) -> dict[str, list[float]]:
    """The same of the base, compressed but not adapted."""
    from trimtab.host.checkpoint import load
    from trimtab.host.compress import compress

    model, tokenizer = load(folder)
    assert tokenizer is not None
    if recipe is not None:
        compress(model, recipe, tokenizer=tokenizer)
    return judgements(model, tokenizer, judge, windows)


def page(found: list[Line]) -> str:
    """Markdown: a table for each model and task."""
    text = ["# Ways to adapt", "", "Made by `benchmarks/adapt.py` from `adapt.jsonl`, not edited by hand.", ""]
    for model in sorted({line["model"] for line in found}):
        for task in TASKS:
            own = [line for line in found if (line["model"], line["task"]) == (model, task)]
            if own:
                text += [f"## {model}, {task}", "", about(own[0]), "", HEAD, RULE, *table(own), ""]
    return "\n".join(text)


HEAD = (
    f"| method | trained parameters | rate | learned, nats (95 % interval) | against `{BUDGET}`, nats "
    "| forgotten, nats (95 % interval) | seconds per step | weights MB | gradients and states MB | of full tuning's | seeds |"
)
RULE = "|---|---|---|---|---|---|---|---|---|---|---|"
FULL = "lisa(active=1000)"


def about(line: Line) -> str:
    setting = line["setting"]
    return (
        f"{setting['steps']} steps, {setting['batch']} rows of up to {setting['length']} tokens, threads: {setting['threads']}. "
        f"Learned: the loss of {len(line['learned'])} rows less that before the training; lower is better. Forgotten: the same "
        f"of {len(line['general'])} windows of `{setting['general']}`. Intervals are over rows or windows, and seeds. Beside a "
        f"compressed base, both are against that base. Against `{BUDGET}`, beside the model as it came, losses themselves "
        f"are set, of the seeds that both have. Full tuning is `{FULL}`. Of the model: {setting['history']}."
    )


def table(own: list[Line]) -> list[str]:
    """By what was learned."""
    rows = []
    usual = {line["seed"]: line["learned"] for line in own if line["recipe"] == BUDGET}
    full = max((line["gradients_and_states"] for line in own if line["recipe"] == FULL), default=0)
    for recipe in dict.fromkeys(line["recipe"] for line in own):
        some = [line for line in own if line["recipe"] == recipe]
        both = [(line["learned"], usual[line["seed"]]) for line in some if line["seed"] in usual and recipe != BUDGET]
        first, base = some[0], [line["before"] for line in some]
        learned, forgotten = (apart([line[what] for line in some], [line[what] for line in base]) for what in KINDS)
        cells = (
            f"`{first['used']}`",
            f"{first['parameters']:,}",
            ", ".join(sorted({f"{line['rate']:g}" for line in some})),
            learned,
            apart(*map(list, zip(*both, strict=True))) if both else "",
            forgotten,
            f"{fmean(line['seconds_per_step'] for line in some):.3f}",
            f"{first['weights'] / 1e6:.1f}",
            f"{max(line['gradients_and_states'] for line in some) / 1e6:.2f}",
            f"1/{full / max(line['gradients_and_states'] for line in some):.1f}" if full else "",
            len(some),
        )
        rows.append((fmean(value for line in some for value in line["learned"]), row(cells)))
    return [shown for _, shown in sorted(rows)]


def arguments() -> argparse.Namespace:
    parser = options(__doc__, "few steps, one rate and seed")
    parser.add_argument("--model", default="asset:own-5m")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="what has one of these words in it")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=1000, help="problems or stories to learn from, and to judge by")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--windows", type=int, default=100, help="rows and windows to judge by")
    parser.add_argument("--rates", type=int, default=len(RATES), choices=range(1, len(RATES) + 1), help="learning rates tried")
    parser.add_argument("--task", choices=list(TASKS), help=argparse.SUPPRESS)
    parser.add_argument("--rate", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.quick:
        given.seeds, given.rows, given.steps, given.windows, given.rates = 1, 40, 4, 4, 1
    return given


if __name__ == "__main__":
    raise SystemExit(main())

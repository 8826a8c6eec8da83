"""Claims are run, not believed: both sides on the same tokens, several seeds, a paired difference with its interval.

A claim holds if the whole 95 % interval of left - right lies on the promised side of zero, fails if it lies on the other
side, and is "not separable" otherwise. Nobody sets a status by hand: the ledger is appended to by `run_claim` alone and
rendered by `render`.
"""

import gc
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trimtab.core.card import Claim
from trimtab.core.errors import UsageError, did_you_mean
from trimtab.core.progress import Progress, Watcher, unwatched
from trimtab.core.recipe import Calibration, Recipe
from trimtab.core.registry import get, ids
from trimtab.data.windows import evaluation_windows
from trimtab.host.checkpoint import load
from trimtab.host.compress import compress
from trimtab.host.gguf_import import history, resolve_model
from trimtab.host.provenance import commit, machine
from trimtab.measure.paired import PairedDifference, paired_difference
from trimtab.measure.perplexity import token_losses
from trimtab.measure.size import bits_per_weight
from trimtab.tensors.products import fast_products

STATUSES = ("holds", "fails", "not separable", "not run")


@dataclass(frozen=True)
class Setting:
    """On what a claim is decided. seeds: of the calibration sample and of everything random in the methods."""

    model: str = "asset:smollm2-135m"
    text: str = "asset:boolq"
    windows: int = 24
    length: int = 512
    calibration: Calibration = field(default_factory=lambda: Calibration(tokens=8192))
    seeds: tuple[int, ...] = (0, 1, 2)


def claims_of(method: str) -> tuple[Claim, ...]:
    """The claims on a method's card."""
    return get(method).card.claims


def find_claim(method: str, name: str) -> Claim:
    """Raises `UsageError` with the nearest name if the method makes no such claim."""
    known = {c.name: c for c in claims_of(method)}
    if name not in known:
        raise UsageError(f"{method} makes no claim {name!r}{did_you_mean(name, known)}")
    return known[name]


def run_claim(method: str, claim: Claim, setting: Setting = Setting(), watch: Watcher = unwatched) -> dict[str, Any]:
    """Measure both sides and return the ledger line. Nothing is written."""
    sides = []
    for number, expression in enumerate((claim.left, claim.right)):
        watch(Progress("claim", number, 2, expression))
        sides.append(_side(expression, setting))
    left, right = ([losses for losses, _ in side] for side in sides)
    found = paired_difference(torch.stack(left), torch.stack(right))
    return {
        "method": method,
        "claim": claim.name,
        "status": status(claim, found),
        "difference": found.difference,
        "low": found.low,
        "high": found.high,
        "unit": "nats per token, left - right",
        "n": found.n,
        "seeds": list(setting.seeds),
        "statement": f"{claim.left} {claim.relation} {claim.right}",
        "left_ppl": _perplexities(left),
        "right_ppl": _perplexities(right),
        "left_bits": sides[0][0][1],
        "right_bits": sides[1][0][1],
        "model": setting.model,
        "setting": {**asdict(setting), "model_history": history(Path(resolve_model(setting.model)))},
        "commit": commit(),
        "machine": machine(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def status(claim: Claim, found: PairedDifference) -> str:
    """holds, fails or not separable, from the interval and nothing else."""
    below, above = found.high < 0, found.low > 0
    if not (below or above):
        return "not separable"
    return "holds" if below == (claim.relation == "<") else "fails"


def append(line: dict[str, Any], ledger: Path) -> None:
    """One JSON object, one line, at the end of the file."""
    ledger.parent.mkdir(parents=True, exist_ok=True)
    with ledger.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def read(ledger: Path) -> list[dict[str, Any]]:
    """All lines, oldest first. Raises `UsageError` naming a line that is damaged."""
    if not ledger.exists():
        return []
    lines = enumerate(ledger.read_text(encoding="utf-8").splitlines(), 1)
    return [_entry(line, f"{ledger}:{number}") for number, line in lines if line.strip()]


def _entry(line: str, place: str) -> dict[str, Any]:
    try:
        entry: dict[str, Any] = json.loads(line)
    except json.JSONDecodeError as error:
        raise UsageError(f"{place} is not a JSON object ({error.msg}); restore the line from version control") from error
    return entry


def latest(lines: Sequence[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    """The last result of every (method, claim)."""
    return {(line["method"], line["claim"]): line for line in lines}


def render(ledger: Path) -> str:
    """The ledger as a table: every claim of every method, also those never run."""
    results = latest(read(ledger))
    lines = [
        "# Claims",
        "",
        "Generated by `trimtab claim --render` from `ledger.jsonl`; not edited by hand. Difference: left - right in nats per "
        "token (paired, 95 % interval); a negative difference means that the left side predicts better.",
        "",
        "| method | claim | statement | status | difference | interval | ppl left / right | bits left / right | n x seeds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    every = [(method, claim) for method in ids() for claim in claims_of(method)]
    lines += [_row(method, claim, results.get((method, claim.name))) for method, claim in every]
    published = [(m, c) for m, c in every if c.published or c.note]
    lines += ["", "## What the papers report, and notes", ""]
    lines += [f"- `{m}` {c.name}: {'; '.join(filter(None, (c.published, c.note)))}" for m, c in published]
    return "\n".join(lines) + "\n"


def _row(method: str, claim: Claim, result: dict[str, Any] | None) -> str:
    statement = f"`{claim.left}` {claim.relation} `{claim.right}`"
    if result is None:
        return f"| {method} | {claim.name} | {statement} | not run | | | | | |"
    ppl = f"{_mean(result['left_ppl']):.2f} / {_mean(result['right_ppl']):.2f}"
    bits = f"{result['left_bits']:.3f} / {result['right_bits']:.3f}"
    interval = f"{result['low']:+.4f} to {result['high']:+.4f}"
    repeats = f"{result['n']} x {len(result['seeds'])}"
    return (
        f"| {method} | {claim.name} | {statement} | **{result['status']}** | {result['difference']:+.4f} | {interval} "
        f"| {ppl} | {bits} | {repeats} |"
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _perplexities(losses: Sequence[Tensor]) -> list[float]:
    return [float(per_window.mean().exp()) for per_window in losses]


def _side(expression: str, setting: Setting) -> list[tuple[Tensor, float]]:
    """Losses [windows] and bits per weight for every seed; measured once where no seed can change the model."""
    found: list[tuple[Tensor, float]] = []
    for seed in setting.seeds:
        losses, bits, seeded = _measured(Recipe.of(expression, setting.calibration, seed), setting)
        found.append((losses, bits))
        if not seeded:
            return found * len(setting.seeds)
    return found


@lru_cache(maxsize=256)
def _measured(recipe: Recipe, setting: Setting) -> tuple[Tensor, float, bool]:
    """[windows] mean nats per token of the compressed model, its bits per weight in the blocks, whether seeds matter."""
    model, tokenizer = load(resolve_model(setting.model))
    assert tokenizer is not None
    done = compress(model, recipe, tokenizer=tokenizer)
    windows = evaluation_windows(setting.text, tokenizer, setting.windows, setting.length, 0)
    with fast_products():
        losses = token_losses(model, windows)
    bits, seeded = bits_per_weight(model)[0].value, done.report.seeded
    del model, done
    gc.collect()  # modules refer to each other in circles; a dozen models would fill the memory before Python noticed
    return losses.mean(1), bits, seeded

"""Whether a result meets the goal it was made for: measured on it, never taken over from where its recipe was measured.

Perplexity is that of the same windows with both models, the interval that of the paired difference. Speed is that of decoding in
the native session, both models in turn with the same threads. Memory is the most that a process held which opened the result and
said a few tokens, with what keys and values of a whole conversation take, which is computed.
"""

import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trimtab.core.errors import ModelError
from trimtab.core.goals import Goal
from trimtab.core.progress import Progress, Watcher, unwatched
from trimtab.data.windows import evaluation_windows
from trimtab.host.checkpoint import load, local_folder
from trimtab.host.goals import CONVERSATION, conversation_bytes
from trimtab.host.model_assets import resolve_model
from trimtab.kernels.module import available
from trimtab.measure.paired import paired_difference
from trimtab.measure.perplexity import token_losses
from trimtab.tensors.products import fast_products

WINDOWS, LENGTH, SEED = 24, 512, 0
TOKENS, ROUNDS = 64, 3  # decoded, and how often
ANSWERING = """
import sys
from trimtab.runtime import Runtime
from trimtab.host.peak import peak_memory
session = Runtime.open(sys.argv[1]).session()
list(session.generate([0, 1, 2, 3], 4))
print(peak_memory())
"""


@dataclass(frozen=True)
class Verdict:
    """found: in the unit of the goal; low, high: its interval, 95 % or the range of rounds. n: windows or rounds, 0 if computed.

    met: None where it could not be measured here, for the reason in `what`, which else says what was measured.
    """

    goal: str
    found: float | None
    low: float | None
    high: float | None
    n: int
    met: bool | None
    what: str

    def json(self) -> dict[str, Any]:
        return asdict(self)


def verdict(
    goal: Goal, model: str, out: str | Path, text: str = "asset:boolq", watch: Watcher = unwatched, windows: int = WINDOWS
) -> Verdict:
    """Measures what `goal` is about. text: for the perplexity. Raises `UsageError` for a text that is too short."""
    base, made = local_folder(resolve_model(model)), Path(out)
    if goal.name == "max_ppl_increase":
        return _loss(goal, [base, made], text, windows, watch)
    if goal.name == "speedup":
        return _speed(goal, base, made, watch)
    return _memory(goal, made)


def _loss(goal: Goal, folders: Sequence[Path], text: str, windows: int, watch: Watcher) -> Verdict:
    losses = []
    for number, folder in enumerate(folders):
        watch(Progress("measure", number, len(folders), folder.name))
        model, tokenizer = load(folder)
        if tokenizer is None:
            raise ModelError(f"{folder} has no tokenizer; copy the tokenizer files of the original model into it")
        with fast_products():
            losses.append(token_losses(model, evaluation_windows(text, tokenizer, windows, LENGTH, SEED)).mean(1))
        del model
    gap = paired_difference(losses[1][None], losses[0][None])
    found, low, high = (math.expm1(value) for value in (gap.difference, gap.low, gap.high))
    before, after = (float(loss.mean().exp()) for loss in losses)
    spread = f"95 % interval {low:+.2%} to {high:+.2%}; {gap.n} windows of {text}"
    what = f"perplexity {before:.2f} -> {after:.2f}, {found:+.2%} ({spread})"
    return Verdict(str(goal), found, low, high, gap.n, found <= goal.value, what)


def _memory(goal: Goal, made: Path) -> Verdict:
    """A process of its own: what this one holds is no part of it."""
    done = subprocess.run([sys.executable, "-P", "-c", ANSWERING, str(made)], capture_output=True, text=True)
    if done.returncode:
        why = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        return Verdict(str(goal), None, None, None, 0, None, f"the native session does not open this model: {why[0]:.300}")
    held, more = int(done.stdout), conversation_bytes(load(made)[0])
    what = f"{(held + more) / 1e6:.1f}MB ({held / 1e6:.1f}MB held, {more / 1e6:.1f}MB for {CONVERSATION} tokens of conversation)"
    return Verdict(str(goal), held + more, None, None, 1, held + more <= goal.value, what)


def _speed(goal: Goal, base: Path, made: Path, watch: Watcher) -> Verdict:
    from trimtab.measure.bench import longer, time_native, words
    from trimtab.runtime import Runtime, Unsupported

    if not available():
        return Verdict(str(goal), None, None, None, 0, None, "no compiled kernels here, so nothing could be timed")
    try:
        opened = [Runtime.open(folder) for folder in (base, made)]
    except Unsupported as error:
        return Verdict(str(goal), None, None, None, 0, None, f"the native session does not cover this model: {error}")
    ids = longer(words(base, TOKENS, opened[0].vocabulary), min(TOKENS, opened[0].context // 2))
    rounds = [[time_native(one, ids, 1, len(ids), 1, watch).decode.value for one in opened] for _ in range(ROUNDS)]
    ratios = sorted(after / before for before, after in rounds)
    found = ratios[len(ratios) // 2]
    before, after = (sorted(column)[ROUNDS // 2] for column in zip(*rounds, strict=True))
    what = f"{before:.1f} -> {after:.1f} tokens/s, {found:.2f}x ({ratios[0]:.2f} to {ratios[-1]:.2f} in {ROUNDS} rounds)"
    return Verdict(str(goal), found, ratios[0], ratios[-1], ROUNDS, found >= goal.value, what)

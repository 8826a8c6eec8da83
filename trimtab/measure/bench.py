"""How fast a model answers on this machine, per number of threads, and how near that is to what its memory allows.

Decoding reads every weight once per token, so bytes per token times tokens per second is held against the speed of plain reading,
which takes turns with it: a machine that other programs use slows both. The native session must say what torch says before its
speed is looked at.
"""

import ast
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PreTrainedModel

from trimtab.core.errors import TrimtabError
from trimtab.core.progress import Progress, Watcher, unwatched
from trimtab.core.report import Measurement
from trimtab.kernels.module import instruction_set, native
from trimtab.measure.speed import decode_speed, prefill_speed, rate, torch_threads

if TYPE_CHECKING:
    from trimtab.runtime import Runtime, Session

SAME_TOP = 0.99  # of positions
PERPLEXITY = 0.002  # relative difference
PROMPT = 16  # tokens before those that are decoded
READ = 1 << 28  # bytes, several times most caches
ROWS = 64  # of logits that are made float64 at a time


@dataclass(frozen=True)
class Gate:
    """The native session against torch on the same tokens. perplexity: of both. red: why no speed may be shown, or nothing."""

    positions: int
    same_top: float
    perplexity: tuple[float, float]
    red: str

    def __str__(self) -> str:
        ours, theirs = self.perplexity
        return f"same top token at {self.same_top:.1%} of {self.positions} positions, perplexity {ours:.5g} against {theirs:.5g}"


@dataclass(frozen=True)
class Timed:
    """With one number of threads. read: plain reading, bytes/s; share: of it, by round; stages: seconds of a decoded token. All
    three are None where nothing native reads."""

    threads: int
    prefill: Measurement
    decode: Measurement
    read: Measurement | None = None
    share: float | None = None
    stages: dict[str, float] | None = None


def words(folder: Path, count: int, vocabulary: int) -> list[int]:
    """At most `count` token ids of a text; without a tokenizer any ids, the same each time."""
    from trimtab.runtime.text import Text

    if (folder / "tokenizer.json").exists():
        return Text.open(folder).encode(_english())[:count]
    return np.random.default_rng(0).integers(0, vocabulary, count).tolist()


def _english() -> str:
    """A text that is always there: what the files of this package say of themselves."""
    files = sorted(Path(__file__).parents[1].rglob("*.py"))
    said = (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) for file in files)
    return "\n\n".join(text for text in said if text)


@torch.inference_mode()
def gate(runtime: "Runtime", model: PreTrainedModel, ids: Sequence[int]) -> Gate:
    """Half of the ids are read at once, the others one by one. Raises `TrimtabError` for fewer than two ids."""
    if len(ids) < 2:
        raise TrimtabError("the gate needs two tokens to compare; this model's context or vocabulary leaves fewer")
    half, session = len(ids) // 2, runtime.session()
    rows = [*session.prefill(list(ids[:half]), every=True), *(np.array(session.step(id)) for id in ids[half:])]
    ours = torch.from_numpy(np.stack(rows))
    theirs = model(input_ids=torch.tensor([list(ids)])).logits[0].float()
    same = float((ours.argmax(-1) == theirs.argmax(-1)).double().mean())
    perplexity = _perplexity(ours, ids), _perplexity(theirs, ids)
    return Gate(len(ids), same, perplexity, _red(same, *perplexity))


def _perplexity(logits: torch.Tensor, ids: Sequence[int]) -> float:
    """logits [length, vocabulary] float32."""
    pairs = zip(logits[:-1].split(ROWS), torch.tensor(ids[1:]).split(ROWS), strict=True)
    losses = torch.cat([torch.nn.functional.cross_entropy(rows.double(), wanted, reduction="none") for rows, wanted in pairs])
    loss = losses.mean()
    return math.exp(min(float(loss), 700.0)) if loss.isfinite() else math.nan


def _red(same_top: float, ours: float, theirs: float) -> str:
    if not abs(ours / theirs - 1) <= PERPLEXITY:  # written so that NaN fails
        return f"the native session has perplexity {ours:.5g} where torch has {theirs:.5g}"
    if same_top < SAME_TOP:
        return f"the native session has the same top token as torch at {same_top:.1%} of positions only"
    return ""


def time_native(
    runtime: "Runtime", ids: Sequence[int], prefill: int, new_tokens: int, repeats: int, watch: Watcher = unwatched
) -> Timed:
    """ids: a text that is repeated as often as needed. A first round is not counted."""
    session, prompt, start = runtime.session(), longer(ids, prefill), longer(ids, PROMPT)
    buffer = np.random.default_rng(0).integers(0, 256, READ, dtype=np.uint8)
    decoded, read, bytes_read = list[float](), list[float](), list[float]()
    for number in range(repeats + 1):
        watch(Progress("bench", number, repeats + 1, f"{runtime.threads} threads"))
        bytes_read.append(READ / _seconds(lambda: native().read(buffer, instruction_set(), runtime.threads)))
        session.reset()
        read.append(prefill / _seconds(lambda: session.prefill(prompt)))
        session.reset()
        session.prefill(start)
        decoded.append(new_tokens / _seconds(lambda: _drained(session.generate(start[:1], new_tokens))))
    shares = [rate * runtime.bytes_per_token / reading for rate, reading in zip(decoded[1:], bytes_read[1:], strict=True)]
    setting = {"threads": runtime.threads, "kernel": runtime.kernel, "batch": 1, "repeats": repeats}
    return Timed(
        runtime.threads,
        rate("prefill speed", read[1:], prefill, setting | {"prompt": prefill}),
        rate("decode speed", decoded[1:], new_tokens, setting | {"prompt": PROMPT, "new_tokens": new_tokens}),
        rate("reading", bytes_read[1:], READ, setting, "bytes/s"),
        median(shares),
        stages_of_a_token(session, start, new_tokens),
    )


def stages_of_a_token(session: "Session", start: Sequence[int], new_tokens: int) -> dict[str, float]:
    """Seconds by stage, the mean over a round of its own: looking at the clock slows a token down."""
    session.reset()
    session.prefill(start)
    session.time_stages(True)
    made = _drained(session.generate(start[:1], new_tokens))
    session.time_stages(False)
    return {stage: seconds / made for stage, seconds in session.stages.items()}


def time_torch(model: PreTrainedModel, ids: Sequence[int], threads: int, prefill: int, new_tokens: int, repeats: int) -> Timed:
    """The same through transformers' `generate`."""
    with torch_threads(threads):
        read = prefill_speed(model, torch.tensor([longer(ids, prefill)]), repeats)
        return Timed(threads, read, decode_speed(model, torch.tensor([longer(ids, PROMPT)]), new_tokens + 1, repeats))


def longer(ids: Sequence[int], count: int) -> list[int]:
    """So many ids, from the beginning again where the text ends."""
    return (list(ids) * (count // len(ids) + 1))[:count]


def _seconds(work: Any) -> float:
    begun = perf_counter()
    work()
    return perf_counter() - begun


def _drained(tokens: Any) -> int:
    return sum(1 for _ in tokens)

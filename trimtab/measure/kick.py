"""LLM-KICK: what perplexity hides. Does a compressed model still know, or can it only still read?

Jaiswal et al., "Compressing LLMs: The Truth is Rarely Pure and Never Simple", ICLR 2024 (arXiv:2310.01382). Their finding:
where perplexity hardly moves, answers from memory (closed book) are already lost, while answers that stand in the prompt
(open book) survive. The arms here are the same items with and without their passage, so both losses are paired item by item.

Same as the paper except: the questions are those of the offline pack (SQuAD, SciQ) instead of FreebaseQA, TriviaQA and MMLU,
and the loss is taken mainly in bits per byte of the gold answer, which moves long before a small model's exact match does.
"""

import math
import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trimtab.core.errors import DataError
from trimtab.core.progress import Watcher, unwatched
from trimtab.core.report import Measurement
from trimtab.data.evidence import ARMS
from trimtab.data.pack import Request
from trimtab.measure.items import Items
from trimtab.measure.tasks import answer, requests, sampled
from trimtab.measure.text import generate

CLOSED, OPEN = "kick:closed", "kick:open"
TOLERATED = 0.05  # relative loss up to which the paper calls a compression tolerable
ANSWER_TOKENS = 16
ARTICLES = re.compile(r"\b(a|an|the)\b")


@dataclass(frozen=True)
class Kick:
    """One model on all arms. items: by arm. measurements: what follows from them, and from what the model wrote."""

    items: Mapping[str, Items]
    measurements: tuple[Measurement, ...]


def kick(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    limit: int | None = None,
    seed: int = 0,
    written: int = 0,
    watch: Watcher = unwatched,
) -> Kick:
    """All arms. limit: items of each. written: so many answers of each gold arm are also written out by greedy decoding."""
    items = {arm: answer(model, tokenizer, arm, limit, seed, watch) for arm in ARMS}
    found = [m for own in items.values() for m in own.measurements()]
    if written:
        for arm in (CLOSED, OPEN):
            found += written_answers(model, tokenizer, arm, sampled(requests(arm), written, seed))
    return Kick(items, tuple(found))


def written_answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, arm: str, asked: Sequence[Request]
) -> list[Measurement]:
    """Exact match and token F1 of what the model writes, the best over the answers that count, as SQuAD defines them."""
    said = [generate(model, tokenizer, item.contexts[0], ANSWER_TOKENS).strip().partition("\n")[0] for item in asked]
    pairs = list(zip(said, asked, strict=True))
    exact = [max(float(bare(text) == bare(gold)) for gold in item.answers) for text, item in pairs]
    shared = [max(f1(text, gold) for gold in item.answers) for text, item in pairs]
    setting = {"new_tokens": ANSWER_TOKENS, "decoding": "greedy, first line"}
    return [
        Measurement(f"{arm} {name}, written", *_mean(torch.tensor(values, dtype=torch.float64)), len(asked), unit, setting)
        for name, values, unit in (("exact match", exact, "fraction of items"), ("F1", shared, "mean over items"))
    ]


def bare(text: str) -> str:
    """Lower case, without punctuation, articles and surplus white space."""
    kept = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(ARTICLES.sub(" ", kept).split())


def f1(text: str, gold: str) -> float:
    """Harmonic mean of the shares of words that each has in common with the other."""
    said, wanted = bare(text).split(), bare(gold).split()
    common = sum((Counter(said) & Counter(wanted)).values())
    return 2 * common / (len(said) + len(wanted)) if common else 0.0


def drop(base: Items, other: Items) -> Measurement:
    """How much of the base's performance is lost, relative to it; 0.1 is a tenth. n counts items.

    A gold arm loses by the rise of the bits of its answers. A choice arm loses accuracy, relative to how far the base is
    above chance. Raises DataError where the items differ, or where the base is not above chance.
    """
    lost, held = _lost(base, other)
    value, residual = _ratio(lost, held)
    setting = {**other.setting, "domains": sorted(set(base.domains))}
    return Measurement(f"{base.task} drop", value, _mean(residual)[1], len(base), "of the base", setting)


def forgotten(base: Kick, other: Kick) -> Measurement:
    """drop(closed) - drop(open), paired item by item: positive where knowledge goes before reading does."""
    parts = [_ratio(*_lost(base.items[arm], other.items[arm])) for arm in (CLOSED, OPEN)]
    (closed, of_closed), (opened, of_open) = parts
    spread = _mean(of_closed - of_open)[1]
    return Measurement("kick: closed less open drop", closed - opened, spread, len(of_closed), "of the base")


def tolerance(drops: Mapping[float, Measurement], most: float = TOLERATED) -> float | None:
    """The largest strength up to which no drop is above `most`; None if the weakest one already is. drops: by strength."""
    reached = None
    for strength in sorted(drops):
        if drops[strength].value > most:
            break
        reached = strength
    return reached


def _lost(base: Items, other: Items) -> tuple[Tensor, Tensor]:
    """[items] each: what the other has lost, and what there was to lose."""
    if (base.task, base.ids) != (other.task, other.ids):
        raise DataError(f"{base.task} and {other.task} are answers to different items; ask both models the same")
    if base.single:
        bits = base.bits_per_byte() * base.sizes[:, 0], other.bits_per_byte() * other.sizes[:, 0]
        return bits[1] - bits[0], bits[0]
    right = base.right().double(), other.right().double()
    chance = 1 / base.scores.isfinite().sum(dim=1)
    return right[0] - right[1], right[0] - chance


def _ratio(lost: Tensor, held: Tensor) -> tuple[float, Tensor]:
    """sum(lost) / sum(held), and [items] whose mean varies as the ratio does (delta method)."""
    if float(held.mean()) <= 0:
        raise DataError("the base model does no better than chance on these items; there is nothing to lose")
    value = float(lost.sum() / held.sum())
    return value, (lost - value * held) / held.mean()


def _mean(values: Tensor) -> tuple[float, float]:
    spread = float(values.std() / math.sqrt(len(values))) if len(values) > 1 else math.nan
    return float(values.mean()), spread

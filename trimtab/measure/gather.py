"""What a comparison rests on, piece by piece: how each is measured, and what it depends on and is therefore kept under.

Texts and tasks are known by their contents, models by their fingerprint; where a file changes, what was measured with it is
measured again.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trimtab.core.errors import DataError
from trimtab.core.progress import Watcher
from trimtab.core.seeds import Seeds
from trimtab.data.text import documents
from trimtab.data.windows import JOINT, evaluation_windows
from trimtab.measure.agreement import Agreement, Predictions, agreement, predictions
from trimtab.measure.contender import Contender, OpenModels
from trimtab.measure.items import Items
from trimtab.measure.pieces import Keep, Result
from trimtab.measure.score import Pair, scores
from trimtab.measure.setting import Setting
from trimtab.measure.size import size
from trimtab.measure.tasks import HARNESS, answer, requests, sampled
from trimtab.measure.text import PROMPTS, samples
from trimtab.measure.text_bytes import scored_bytes
from trimtab.measure.wanted import Wanted

FORMAT = 1  # of everything that is kept here; another number is measured anew
NEW_TOKENS = 32  # of a sample
TOKEN = 4  # bytes, roughly, to estimate how long a task takes
DECODED = 10  # tokens read in the time that one takes to be written
PASSAGES = 4  # for every window: they are shorter


@dataclass(frozen=True)
class Gatherer:
    """Makes the wanted pieces of one comparison."""

    setting: Setting
    opened: OpenModels

    def text(self, one: Contender) -> Wanted:
        """windows [windows of all texts, length] as the model's tokenizer cuts them, their scored bytes; and which it is."""

        def make(_: Watcher, __: Keep) -> Result:
            tokenizer, s = one.tokenizer(), self.setting
            windows = torch.cat([evaluation_windows(t, tokenizer, s.windows, s.length, s.seed) for t in s.texts])
            return _which(tokenizer, windows), {"windows": windows, "bytes": scored_bytes(tokenizer, windows)}

        return Wanted("text", self._on_text({"tokens": one.fingerprint}), make, detail=one.name)

    def predictions(self, one: Contender, windows: Tensor) -> Wanted:
        """What one model predicts on windows; how big it is, and in what dtype it was run."""

        def make(watch: Watcher, keep: Keep) -> Result:
            model, _ = self.opened(one)
            found = predictions(model, windows, watch=watch, name=one.name, keep=keep)
            return _at_rest(model), _as_tensors(found, "")

        return Wanted("predictions", self._on_text(self._who(one)), make, windows.numel(), one.name)

    def agreement(self, base: Contender, other: Contender, windows: Tensor) -> Wanted:
        """The same of two models, and what they have in common."""

        def make(watch: Watcher, keep: Keep) -> Result:
            left, right = (self.opened(one)[0] for one in (base, other))
            found = agreement(left, right, windows, watch=watch, names=(base.name, other.name), keep=keep)
            common = {name: part for name in ("kl", "same_top") if (part := getattr(found, name)) is not None}
            value = {"base": _at_rest(left), "other": _at_rest(right), "note": found.note}
            return value, {**_as_tensors(found.base, "base_"), **_as_tensors(found.other, "other_"), **common}

        key = self._on_text({"base": self._who(base), "other": self._who(other)})
        return Wanted("agreement", key, make, 2 * windows.numel(), other.name)

    def items(self, one: Contender, task: str) -> Wanted:
        """How a model answers a task."""
        content, work = self._tasks[task]

        def make(watch: Watcher, keep: Keep) -> Result:
            model, tokenizer = self.opened(one)
            with one.named():
                return answer(model, tokenizer, task, self.setting.limit, self.setting.seed, watch, keep).kept()

        key = {**self._who(one), "task": task, "content": content, "limit": self.setting.limit, "seed": self.setting.seed}
        return Wanted("items", key, make, work, f"{one.name}, {task}")

    def samples(self, one: Contender) -> Wanted:
        """What a model writes after a few fixed prompts."""

        def make(_: Watcher, __: Keep) -> Result:
            return samples(*self.opened(one), PROMPTS, NEW_TOKENS), {}

        key = {**self._who(one), "prompts": PROMPTS, "new_tokens": NEW_TOKENS}
        return Wanted("samples", key, make, DECODED * NEW_TOKENS * len(PROMPTS), f"{one.name}, samples")

    def passages(self, one: Contender) -> Wanted:
        """nats and bytes [passages] of the same pieces of text, whatever the tokenizer makes of them."""
        pairs = self._passages

        def make(watch: Watcher, keep: Keep) -> Result:
            model, tokenizer = self.opened(one)
            with one.named():
                found = scores(model, tokenizer, [[pair] for pair in pairs], watch, keep=keep)
            nats = [-score.nats for (score,) in found]
            return {}, {"nats": torch.tensor(nats, dtype=torch.float64), "bytes": passage_bytes(pairs)}

        key = {**self._who(one), "passages": _digest(pairs)}
        return Wanted("passages", key, make, len(pairs) * self.setting.length / TOKEN, f"{one.name}, passages")

    @cached_property
    def _documents(self) -> list[list[str]]:
        return [documents(source) for source in self.setting.texts]

    @cached_property
    def _contents(self) -> list[str]:
        return [_digest(texts) for texts in self._documents]

    @cached_property
    def _tasks(self) -> dict[str, tuple[str, float]]:
        return {task: self._task(task) for task in self.setting.tasks}

    def _task(self, task: str) -> tuple[str, float]:
        """What is asked, as a digest, and roughly how many tokens that is."""
        if task.startswith(HARNESS):
            return f"lm-eval {_version('lm-eval')}", self.setting.windows * self.setting.length
        asked = sampled(requests(task), self.setting.limit, self.setting.seed)
        read = sum(len(item.contexts[0]) + sum(map(len, item.continuations)) for item in asked)
        return _digest([asdict(item) for item in asked]), read / TOKEN

    @cached_property
    def _passages(self) -> list[Pair]:
        return [pair for texts in self._documents for pair in passages(texts, self.setting)]

    def _who(self, one: Contender) -> dict[str, Any]:
        return {"model": one.fingerprint, "dtype": self.setting.dtype, "device": self.setting.device, "format": FORMAT}

    def _on_text(self, key: dict[str, Any]) -> dict[str, Any]:
        s = self.setting
        return {**key, "texts": self._contents, "windows": s.windows, "length": s.length, "seed": s.seed, "format": FORMAT}


def passages(texts: Sequence[str], setting: Setting) -> list[Pair]:
    """(context, scored text): a sample of pieces of at most `length` bytes in all, so that they fit whatever the tokens are.

    Raises DataError where the text gives fewer than two.
    """
    pieces = _pieces(JOINT.join(texts).split(" "), setting.length)
    if len(pieces) < 2:
        raise DataError(f"the text is too short for two passages of {setting.length} bytes; give more text")
    order = torch.randperm(len(pieces), generator=Seeds(setting.seed).at("passages"))
    return [pieces[number] for number in sorted(order[: PASSAGES * setting.windows].tolist())]


def passage_bytes(pairs: Sequence[Pair]) -> Tensor:
    """[passages] int64: UTF-8 bytes of the scored text."""
    return torch.tensor([len(scored.encode()) for _, scored in pairs])


def _pieces(words: Sequence[str], most: int) -> list[Pair]:
    """Runs of words cut in two: a quarter to read, the rest to be scored, with the space between them."""
    found: list[Pair] = []
    held: list[str] = []
    taken = 0
    for word in words:
        extra = len(word.encode()) + 1
        if taken + extra > most:
            found += _halved(held)
            held, taken = [], 0
        if extra <= most and word.strip():
            held.append(word)
            taken += extra
    return found


def _halved(words: Sequence[str]) -> list[Pair]:
    """Spaces at the end of what is read are scored: there a tokenizer may join them to what follows."""
    read = max(1, len(words) // 4)
    context = " ".join(words[:read])
    bare = context.rstrip()
    return [(bare, f"{context[len(bare) :]} {' '.join(words[read:])}")] if len(words) > read else []


def _as_tensors(found: Predictions, before: str) -> dict[str, Tensor]:
    return {before + name: tensor for name, tensor in vars(found).items()}


def predicted(tensors: dict[str, Tensor], before: str = "") -> Predictions:
    """Predictions out of what was kept."""
    return Predictions(*(tensors[before + name] for name in ("losses", "confidence", "right")))


def agreed(result: Result) -> Agreement:
    """An agreement out of what was kept."""
    value, tensors = result
    sides = predicted(tensors, "base_"), predicted(tensors, "other_")
    return Agreement(*sides, tensors.get("kl"), tensors.get("same_top"), value["note"])


def answered(result: Result) -> Items:
    """Items out of what was kept."""
    return Items.from_kept(*result)


def _at_rest(model: PreTrainedModel) -> dict[str, Any]:
    dtype = str(model.dtype).removeprefix("torch.")
    return {"size": [asdict(measured) for measured in size(model)], "dtype": dtype}


def _which(tokenizer: PreTrainedTokenizerBase, windows: Tensor) -> str:
    """Tokenizers are the same if they have the same entries and cut the text alike, however their files are written."""
    return _digest([tokenizer.get_vocab(), windows.tolist()])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"

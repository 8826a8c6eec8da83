"""How likely a model finds a continuation after a context: the one number that all tasks are made of.

The token boundary is drawn as lm-evaluation-harness draws it, so that results agree item by item: spaces at the end of the
context belong to the continuation, context + continuation is tokenized as a whole, and the continuation is what comes
after as many tokens as the context alone has. A context that is too long loses tokens on the left, never the continuation.

The choices of an item mostly share their context. The model reads what they share once and keeps its keys and values; then
every choice is a few tokens. That is exact for caches that keep everything; any other model reads every choice from the
start. Choices whose inputs agree (one-token answers) share one row.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from trimtab.core.errors import DataError, ModelError
from trimtab.core.progress import Progress, Watcher, unwatched
from trimtab.measure.nan_hunt import blame
from trimtab.measure.perplexity import evaluating, positions_at_once
from trimtab.measure.pieces import Keep, Result, digest, unkept

LENGTHS = ("n_positions", "max_position_embeddings", "n_ctx")  # what families call the longest input they take
UNKNOWN_LENGTH = 2048  # taken where neither the model nor the tokenizer says
NO_LIMIT = 10**12  # tokenizers that know no limit give a number beyond this
ROUNDED = 8  # shared inputs are counted in eights, so that more items share equally many and go together
TOKENS_AT_ONCE = 4096  # of contexts in one pass
KEPT_WHOLE = (DynamicLayer, DynamicSlidingWindowLayer)  # cache layers that lose nothing that attention could still see

Pair = tuple[str, str]  # context, continuation


@dataclass(frozen=True)
class Score:
    """nats: log-likelihood of the continuation. greedy: every token of it was the likeliest. cut: its context was cut."""

    nats: float
    greedy: bool
    cut: bool


@dataclass(frozen=True)
class Line:
    """Token ids of context and continuation; the last `scored` ids are the continuation."""

    ids: tuple[int, ...]
    scored: int
    cut: bool

    @property
    def inputs(self) -> tuple[int, ...]:
        return self.ids[:-1]

    @property
    def free(self) -> int:
        """How many inputs come before the first whose logits are needed."""
        return len(self.ids) - 1 - self.scored


@dataclass(frozen=True)
class _Group:
    """The choices of one item. shared: how many inputs all of them begin with, short of what must give logits."""

    number: int
    lines: tuple[Line, ...]
    shared: int

    @property
    def rows(self) -> list[tuple[int, ...]]:
        """The different inputs that are left after the shared ones."""
        return list(dict.fromkeys(line.inputs[self.shared :] for line in self.lines))

    @property
    def longest(self) -> int:
        return max(map(len, self.rows))


def context_length(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The most input tokens that the model takes: from its config, else from the tokenizer, else 2048."""
    config = model.config.get_text_config()
    said = [getattr(config, name, None) for name in LENGTHS]
    for length in (*said, tokenizer.model_max_length):
        if length is not None and length < NO_LIMIT:
            return int(length)
    return UNKNOWN_LENGTH


def encode(tokenizer: PreTrainedTokenizerBase, pair: Pair, room: int) -> Line:
    """room: the most tokens that the model takes. Raises DataError if the continuation is empty or does not fit."""
    context, continuation = pair
    bare = context.rstrip()
    continuation = context[len(bare) :] + continuation
    before, after = _with_context(tokenizer, bare, continuation) if bare else _alone(tokenizer, continuation)
    if not after:
        raise DataError(f"the continuation {continuation!r:.60} has no tokens of its own after {context[-20:]!r}")
    if len(after) > room:
        raise DataError(f"a continuation has {len(after)} tokens, the model takes {room}; leave the item out")
    ids = (*before, *after)
    return Line(ids[-(room + 1) :], len(after), len(ids) > room + 1)


def _with_context(tokenizer: PreTrainedTokenizerBase, context: str, continuation: str) -> tuple[list[int], list[int]]:
    options = {"add_special_tokens": False} if context.startswith(tokenizer.decode(_first(tokenizer))) else {}
    whole = tokenizer(context + continuation, verbose=False, **options)["input_ids"]
    before = tokenizer(context, verbose=False, **options)["input_ids"]
    return before, whole[len(before) :]


def _alone(tokenizer: PreTrainedTokenizerBase, continuation: str) -> tuple[list[int], list[int]]:
    """Without a context, the token that begins every text stands for one."""
    ids = tokenizer(continuation, add_special_tokens=False, verbose=False)["input_ids"]
    first = _first(tokenizer)
    return (ids[:1], ids[1:]) if ids[:1] == [first] else ([first], ids)


def _first(tokenizer: PreTrainedTokenizerBase) -> int:
    found = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if found is None:
        raise DataError("the tokenizer has neither a BOS nor an EOS token to stand before a text; set one")
    return int(found)


@torch.no_grad()
def scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[Sequence[Pair]],
    watch: Watcher = unwatched,
    what: str = "items",
    keep: Keep = unkept,
) -> list[list[Score]]:
    """Per item and choice. Logits in the model's dtype, log-softmax in float32, as lm-eval has it (float64 stays float64).

    keep: of batches of items.
    Raises DataError for a continuation that cannot be scored, ModelError when a log-likelihood is not finite.
    """
    room = context_length(model, tokenizer)
    lines = [[encode(tokenizer, pair, room) for pair in pairs] for pairs in items]
    found: list[list[Score]] = [[] for _ in items]
    done = 0
    with evaluating(model):
        reuse = keeps_everything(model)
        for batch in _batches([_group(n, own, reuse) for n, own in enumerate(lines)], positions_at_once(model)):
            watch(Progress(what, done, len(items)))
            for group, answers in zip(batch, _kept(model, batch, keep), strict=True):
                found[group.number] = answers
            done += len(batch)
    watch(Progress(what, done, len(items)))
    return found


def keeps_everything(model: PreTrainedModel) -> bool:
    """Whether what the model keeps of a prefix is as good as the prefix: plain caches of keys and values, nothing else."""
    probe = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
    kept = getattr(model.base_model(input_ids=probe, use_cache=True), "past_key_values", None)
    return type(kept) is DynamicCache and all(type(layer) in KEPT_WHOLE for layer in kept.layers)


def _group(number: int, lines: Sequence[Line], reuse: bool) -> _Group:
    if not reuse:
        return _Group(number, tuple(lines), 0)
    columns = zip(*(line.inputs[: line.free] for line in lines), strict=False)
    shared = len(list(takewhile(lambda ids: len(set(ids)) == 1, columns)))
    return _Group(number, tuple(lines), shared // ROUNDED * ROUNDED)


def _batches(groups: Sequence[_Group], positions: int) -> Iterator[list[_Group]]:
    """Together go items that share equally many inputs, so that nothing is padded on the left. positions: logits at once."""
    alike: dict[int, list[_Group]] = defaultdict(list)
    for group in groups:
        alike[group.shared].append(group)
    for shared in sorted(alike, reverse=True):  # the most memory first
        batch: list[_Group] = []
        for group in sorted(alike[shared], key=lambda g: -g.longest):
            grown = [*batch, group]
            logits = sum(len(g.rows) for g in grown) * grown[0].longest
            if batch and (logits > positions or len(grown) * shared > TOKENS_AT_ONCE):
                yield batch
                grown = [group]
            batch = grown
        yield batch


def _kept(model: PreTrainedModel, batch: Sequence[_Group], keep: Keep) -> list[list[Score]]:
    def made() -> Result:
        found = [score for own in _answers(model, batch) for score in own]
        nats, greedy = [score.nats for score in found], [score.greedy for score in found]
        return None, {"nats": torch.tensor(nats, dtype=torch.float64), "greedy": torch.tensor(greedy)}

    shown = [[group.shared, [(line.ids, line.scored) for line in group.lines]] for group in batch]
    _, held = keep({"scores": digest(shown)}, made)
    said = zip(held["nats"].tolist(), held["greedy"].tolist(), strict=True)
    return [[Score(*next(said), line.cut) for line in group.lines] for group in batch]


def _answers(model: PreTrainedModel, batch: Sequence[_Group]) -> list[list[Score]]:
    """Of items that share equally many inputs."""
    rows = [(position, row) for position, group in enumerate(batch) for row in group.rows]
    logits = _logits(model, batch, rows)  # [rows, longest, vocabulary]
    where = {row: number for number, row in enumerate(rows)}
    found = []
    for position, group in enumerate(batch):
        own = [(line, logits[where[position, line.inputs[group.shared :]]]) for line in group.lines]
        found.append([_score(model, line, values, group.shared) for line, values in own])
    return found


def _logits(model: PreTrainedModel, batch: Sequence[_Group], rows: Sequence[tuple[int, tuple[int, ...]]]) -> Tensor:
    longest = max(len(row) for _, row in rows)
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for _, row in rows], device=model.device)
    if not batch[0].shared:
        return model(input_ids=ids, use_cache=False).logits
    kept = _read(model, batch)
    kept.reorder_cache(torch.tensor([position for position, _ in rows], device=model.device))
    return model(input_ids=ids, past_key_values=kept, use_cache=True).logits


def _read(model: PreTrainedModel, batch: Sequence[_Group]) -> Any:
    """The cache after the shared inputs, without asking the head for logits that nobody needs."""
    shared = torch.tensor([group.lines[0].inputs[: group.shared] for group in batch], device=model.device)
    return model.base_model(input_ids=shared, use_cache=True).past_key_values


def _score(model: PreTrainedModel, line: Line, logits: Tensor, shared: int) -> Score:
    """logits: [longest, vocabulary] from the inputs after the shared ones."""
    end = len(line.inputs) - shared
    needed = logits[end - line.scored : end]
    wide = needed if needed.dtype == torch.float64 else needed.float()
    wanted = torch.tensor(line.ids[-line.scored :], device=logits.device)
    nats = wide.log_softmax(dim=-1).gather(1, wanted[:, None]).double().sum()
    if not nats.isfinite():
        ids = torch.tensor([line.inputs], device=model.device)
        raise ModelError(f"the log-likelihood of a continuation is not finite: {blame(model, ids)}")
    return Score(float(nats), bool((wide.argmax(dim=-1) == wanted).all()), line.cut)

"""Windows of tokens: what calibration and perplexity run on. No padding, so every position counts the same.

Documents are joined by an empty line and cut without regard to their ends. An end-of-sequence token between them would be
closer to pretraining for base models, but for a chat model it ends a turn, and plain text never holds it. A tokenizer that
opens every text with its BOS token gets that token at the start of every window, where the model expects it.

With a stride, windows overlap: each begins `stride` tokens after the one before, and only its last `stride` tokens are to be
scored. So no token is scored twice, and every scored token has at least `length - stride` tokens before it; the first ones
of the text are context and nothing else, and a rest that fills no window is dropped.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from trimtab.core.errors import DataError
from trimtab.core.seeds import Seeds
from trimtab.data.text import documents

JOINT = "\n\n"
Encode = Callable[[str], Sequence[int]]


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that is used here."""

    bos_token_id: int | None

    def __call__(self, text: str, **options: Any) -> Any: ...


def encoder(tokenizer: Tokenizer) -> Encode:
    """Text to ids, no special tokens added."""

    def encode(text: str) -> list[int]:
        # verbose=False: a document may be longer than the model's context, it is cut into windows anyway.
        ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    return encode


def opening(tokenizer: Tokenizer) -> list[int]:
    """What the tokenizer puts before every text: [bos] or nothing."""
    first = tokenizer("")["input_ids"][:1]
    return [tokenizer.bos_token_id] if first and first[0] == tokenizer.bos_token_id is not None else []


def leading(tokenizer: Tokenizer) -> Encode:
    """Text to the ids that stand before others: what opens every text, then the text as it is joined to the next one."""

    def encode(text: str) -> list[int]:
        return [*opening(tokenizer), *(encoder(tokenizer)(text + JOINT) if text else [])]

    return encode


def pack(texts: Iterable[str], encode: Encode, length: int, start: Sequence[int] = ()) -> Tensor:
    """[n, length] int64: `start`, then the next tokens of the joined texts, in every row. The tail is dropped.

    Raises DataError when there are fewer tokens than one window takes.
    """
    return _cut(_tokens(texts, encode), length, start)


def sample(windows: Tensor, count: int, seed: int) -> Tensor:
    """[count, length]: rows of `windows`, without replacement. Raises DataError when there are fewer."""
    if count > len(windows):
        raise DataError(
            f"asked for {count} windows of {windows.shape[1]} tokens, the text gives {len(windows)}; "
            f"ask for at most {len(windows)}, use a shorter length, or give more text"
        )
    return windows[torch.randperm(len(windows), generator=Seeds(seed).at("windows"))[:count]]


def calibration_windows(source: str, tokenizer: Tokenizer, tokens: int, length: int, seed: int) -> Tensor:
    """[ceil(tokens / length), length] int64 from a seeded shuffle of the source's documents.

    Only as many documents are tokenized as are needed. Raises DataError when the source is too short.
    """
    start, count = opening(tokenizer), -(-tokens // length)
    needed = count * (length - len(start))
    texts = documents(source)
    order = torch.randperm(len(texts), generator=Seeds(seed).at("calibration")).tolist()
    stream = _tokens((texts[i] for i in order), encoder(tokenizer), needed)
    if len(stream) < needed:
        raise DataError(
            f"{source} has {len(stream)} tokens, {needed} were asked for; ask for at most {len(stream)} or give more text"
        )
    return _cut(stream[:needed], length, start)


def evaluation_windows(
    source: str, tokenizer: Tokenizer, count: int, length: int, seed: int, stride: int | None = None
) -> Tensor:
    """[count, length] int64: a sample from all windows of the source. Raises DataError when there are fewer.

    stride: windows overlap, and their last `stride` tokens are the ones to score.
    """
    if stride is not None and not 1 <= stride < length:
        raise DataError(f"a stride must be from 1 to the length less one ({length - 1}), got {stride}")
    start = opening(tokenizer)
    rows = _rows(_tokens(documents(source), encoder(tokenizer)), length, start, stride)
    return _started(sample(rows, count, seed), start)


def _tokens(texts: Iterable[str], encode: Encode, enough: float = float("inf")) -> list[int]:
    stream: list[int] = []
    for text in texts:
        if len(stream) >= enough:
            break
        stream.extend(encode(text + JOINT))
    return stream


def _cut(stream: Sequence[int], length: int, start: Sequence[int]) -> Tensor:
    return _started(_rows(stream, length, start), start)


def _rows(stream: Sequence[int], length: int, start: Sequence[int], stride: int | None = None) -> Tensor:
    """[rows, length - len(start)]: what follows `start` in every window. With a stride, a view of the one stream."""
    body = length - len(start)
    if body < 1:
        raise DataError(f"a window of {length} tokens has no room for text; use a length of at least {len(start) + 1}")
    if len(stream) < body:
        raise DataError(
            f"the text has {len(stream)} tokens, one window of {length} takes {body}; "
            f"use a length of at most {len(stream) + len(start)} or give more text"
        )
    return torch.tensor(stream, dtype=torch.int64).unfold(0, body, stride or body)


def _started(rows: Tensor, start: Sequence[int]) -> Tensor:
    return torch.cat([torch.tensor(list(start), dtype=torch.int64).expand(len(rows), -1), rows], dim=1)

"""What a model is trained on: windows of text, prompts with the completion to learn, or conversations.

A row is tokens and, for each of them, whether it is to be learned. Of text everything is; of a prompt and its completion the
completion and the end of sequence; of a conversation what the assistant says. Prompt and completion are encoded apart, as
they will be when only the prompt is there.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from trimtab.core.errors import DataError
from trimtab.core.seeds import Seeds
from trimtab.data.text import HALVES, documents
from trimtab.data.windows import encoder, opening, pack

IGNORED = -100  # the label of what is not learned, everywhere in torch and transformers
SHAPES = '{"text": "..."}, {"prompt": "...", "completion": "..."} or {"messages": [{"role": "user", "content": "..."}, ...]}'
ROLES = ("system", "user", "assistant", "tool")
FILES = (".txt", ".jsonl")


class ChatTokenizer(Protocol):
    """The part of a Hugging Face tokenizer that is used here."""

    bos_token_id: int | None
    eos_token_id: int | None
    chat_template: Any

    def __call__(self, text: str, **options: Any) -> Any: ...

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any: ...


@dataclass(frozen=True, eq=False)
class Row:
    """ids: [length] int64. learned: [length] bool, the first never, since nothing comes before it."""

    ids: Tensor
    learned: Tensor

    @property
    def labels(self) -> Tensor:
        return torch.where(self.learned, self.ids, IGNORED)


@dataclass(frozen=True, eq=False)
class Examples:
    """rows: in the order of the source. truncated: how many were cut to the length; dropped: how many had nothing to learn."""

    rows: tuple[Row, ...]
    truncated: int = 0
    dropped: int = 0

    @property
    def learned(self) -> int:
        """Tokens that are learned in one pass."""
        return sum(int(row.learned.sum()) for row in self.rows)


def examples(source: str | Path, tokenizer: ChatTokenizer, length: int) -> Examples:
    """Rows of at most `length` tokens from an asset, a .txt file, a .jsonl file, or a folder of such files.

    Texts are joined and cut into windows of exactly `length`; the rest is one row each. Raises `DataError` naming file and line.
    """
    texts, made = _read(str(source), tokenizer)
    cut = [_cut(row, length) for row in made]
    kept = [row for row in cut if row.learned.any()]
    if texts:
        kept += _windows(texts, tokenizer, length)
    if not kept:
        raise DataError(f"{source} leaves nothing to learn in rows of {length} tokens; use a greater --length")
    truncated = sum(len(row.ids) < len(whole.ids) for row, whole in zip(cut, made, strict=True))
    return Examples(tuple(kept), truncated, sum(not row.learned.any() for row in cut))


def held_out(found: Examples, share: float, seed: int) -> tuple[Examples, Examples]:
    """(to train on, to validate on): a seeded draw of `share` of the rows, at least one where share > 0.

    Raises `DataError` where nothing would be left to train on.
    """
    count = max(1, round(share * len(found.rows))) if share > 0 else 0
    if count >= len(found.rows):
        raise DataError(f"{len(found.rows)} rows cannot be divided into training and validation; give more, or --validation 0")
    order = torch.randperm(len(found.rows), generator=Seeds(seed).at("validation")).tolist()
    apart = set(order[:count])
    train = tuple(row for number, row in enumerate(found.rows) if number not in apart)
    return Examples(train, found.truncated, found.dropped), Examples(tuple(found.rows[number] for number in sorted(apart)))


def batch(rows: Sequence[Row], padding: int) -> dict[str, Tensor]:
    """input_ids, attention_mask, labels: [rows, longest], filled up on the right."""
    longest = max(len(row.ids) for row in rows)

    def filled(values: Sequence[Tensor], by: int) -> Tensor:
        return torch.stack([torch.cat([v, torch.full((longest - len(v),), by)]) for v in values])

    return {
        "input_ids": filled([row.ids for row in rows], padding),
        "attention_mask": filled([torch.ones_like(row.ids) for row in rows], 0),
        "labels": filled([row.labels for row in rows], IGNORED),
    }


def _read(source: str, tokenizer: ChatTokenizer) -> tuple[list[str], list[Row]]:
    path = Path(source).expanduser()
    if source.startswith("asset:"):
        return documents(source), []
    if not path.is_dir():
        return _file(path, tokenizer)
    files = sorted(file for file in path.rglob("*") if file.suffix in FILES and file.is_file())
    if not files:
        raise DataError(f"{path} holds no .txt or .jsonl file; give a folder that does")
    texts, rows = list[str](), list[Row]()
    for file in files:
        more, others = _file(file, tokenizer)
        texts, rows = texts + more, rows + others
    return texts, rows


def _file(path: Path, tokenizer: ChatTokenizer) -> tuple[list[str], list[Row]]:
    if path.suffix != ".jsonl":
        return documents(str(path)), []
    texts, rows = list[str](), list[Row]()
    for place, entry in _entries(path):
        if "messages" in entry:
            rows.append(_conversation(place, entry["messages"], tokenizer))
        elif "prompt" in entry or "completion" in entry:
            rows.append(answered(_string(place, entry, "prompt"), _string(place, entry, "completion"), tokenizer))
        else:
            texts.append(_string(place, entry, "text"))
    if not texts and not rows:
        raise DataError(f"{path} is empty; write lines such as {SHAPES}")
    return texts, rows


def _entries(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """("file:line", object) of every line that is not blank."""
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 (byte {error.start}); convert it, for example with iconv") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; check the path and its permissions") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{number} is not a JSON object ({error!s:.200}); write one object a line") from error
        if not isinstance(entry, dict):
            raise DataError(f"{path}:{number} is not a JSON object; write lines such as {SHAPES}")
        yield f"{path}:{number}", entry


def _string(place: str, entry: Mapping[str, Any], name: str) -> str:
    value = entry.get(name)
    if not isinstance(value, str) or not value or HALVES.search(value):
        raise DataError(f'{place} has no text in "{name}"; write lines such as {SHAPES}')
    return value


def answered(prompt: str, completion: str, tokenizer: ChatTokenizer) -> Row:
    """A row of which the completion and the end of sequence are learned."""
    encode = encoder(tokenizer)
    asked, answer = [*opening(tokenizer), *encode(prompt)], list(encode(completion))
    if tokenizer.eos_token_id is not None:
        answer.append(tokenizer.eos_token_id)
    return _row([*asked, *answer], [False] * len(asked) + [True] * len(answer))


def _conversation(place: str, messages: Any, tokenizer: ChatTokenizer) -> Row:
    """What the template puts behind the assistant's prompt is learned, up to and with the end of the turn."""
    _check_messages(place, messages)
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(f"{place} is a conversation, but the tokenizer has no chat template; write prompts and completions")
    ids, learned = list[int](), list[bool]()
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            before = _rendered(tokenizer, messages[:number], True)
            after = _rendered(tokenizer, messages[: number + 1], False)
            if before[: len(ids)] != ids or after[: len(before)] != before:
                raise DataError(f"{place}: the chat template writes earlier turns anew; split it into prompts and completions")
            learned += [False] * (len(before) - len(ids)) + [True] * (len(after) - len(before))
            ids = after
    return _row(ids, learned)


def _check_messages(place: str, messages: Any) -> None:
    good = isinstance(messages, list) and all(
        isinstance(m, dict) and m.get("role") in ROLES and _is_text(m.get("content")) for m in messages
    )
    if not good or not any(m["role"] == "assistant" for m in messages):
        raise DataError(f'{place}: "messages" must be a list of {{"role", "content"}} with a turn of the assistant')


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not HALVES.search(value)


def _rendered(tokenizer: ChatTokenizer, messages: Sequence[Any], prompt: bool) -> list[int]:
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    return list(encoder(tokenizer)(text))


def _row(ids: Sequence[int], learned: Sequence[bool]) -> Row:
    mask = torch.tensor(learned, dtype=torch.bool)
    mask[:1] = False
    return Row(torch.tensor(ids, dtype=torch.int64), mask)


def _cut(row: Row, length: int) -> Row:
    return row if len(row.ids) <= length else Row(row.ids[:length], row.learned[:length])


def _windows(texts: Sequence[str], tokenizer: ChatTokenizer, length: int) -> list[Row]:
    windows = pack(texts, encoder(tokenizer), length, opening(tokenizer))
    return [_row(window.tolist(), [True] * length) for window in windows]

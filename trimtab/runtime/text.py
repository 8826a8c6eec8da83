"""From words to token ids and back, and what a conversation looks like, as the files of a model folder say.

`tokenizers` reads the same tokenizer.json that transformers reads; importing transformers would take longer than the first token.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from trimtab.core.errors import ModelError, UsageError
from trimtab.runtime.errors import Unsupported
from trimtab.runtime.folder import read_json
from trimtab.runtime.template import render

Messages = Sequence[Mapping[str, str]]  # {"role": "user", "content": ...}
SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
HIGHEST_PENALTY = 1e6
NO_WORD = "\ufffd"  # what decoding gives for bytes that are no character yet


@dataclass(frozen=True)
class Text:
    """The tokenizer of a folder. template: of its conversations, or None. names: of special tokens, for the template.

    stops: ids that end an answer. penalty: on repetition, that the model's files ask for; 1 is none.
    """

    tokenizer: Tokenizer
    template: str | None
    names: Mapping[str, str]
    stops: tuple[int, ...]
    penalty: float

    @classmethod
    def open(cls, folder: Path) -> "Text":
        """Raises `Unsupported` where there is no tokenizer.json, `ModelError` where it cannot be read."""
        file = folder / "tokenizer.json"
        if not file.exists():
            raise Unsupported(f"{folder} has no tokenizer.json")
        try:
            tokenizer = Tokenizer.from_file(str(file))
        # The library raises bare Exceptions, whatever goes wrong.
        except Exception as error:
            said = (str(error).splitlines() or ["no reason given"])[0]
            raise ModelError(f"{file} cannot be opened: {said:.300}") from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        settings = _settings(folder / "tokenizer_config.json")
        names = {name: _plain(settings[name]) for name in SPECIAL if settings.get(name) is not None}
        penalty = _penalty(folder / "generation_config.json")
        return cls(tokenizer, _template(folder, settings), names, _stops(folder), penalty)

    def encode(self, text: str, special: bool = True) -> list[int]:
        """special: add what the tokenizer puts around a text. A conversation brings its own."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=special).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Without special tokens."""
        said: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return said

    def conversation(self, messages: Messages) -> str:
        """As the model was trained to read it, up to where its answer begins. Raises `UsageError` without a template."""
        if self.template is None:
            raise UsageError("this tokenizer has no chat template; ask without chat")
        return render(self.template, messages, self.names)


class Stream:
    """Tokens in, text out as soon as it is whole: a character may take several tokens, a space may depend on the next one."""

    def __init__(self, decode: Callable[[Sequence[int]], str]):
        self.decode = decode
        self.ids: list[int] = []
        self.from_, self.said = 0, 0  # ids[from_:said] were said already, and are read again with those that follow

    def push(self, id: int) -> str:
        """What can be said now that this token is there."""
        self.ids.append(id)
        piece = self._rest()
        if piece.endswith(NO_WORD):
            return ""
        self.from_, self.said = self.said, len(self.ids)
        return piece

    def end(self) -> str:
        """What was held back, however broken it is."""
        return self._rest()

    def _rest(self) -> str:
        before, whole = self.decode(self.ids[self.from_ : self.said]), self.decode(self.ids[self.from_ :])
        return whole[len(before) :]


def _settings(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no such file."""
    return read_json(path) if path.exists() else {}


def _plain(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) and "content" in token else token)


def _template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """A file of its own, or among the tokenizer's settings; of several the one called "default"."""
    file = folder / "chat_template.jinja"
    if file.exists():
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"{file} is not readable: {error}") from error
    found = settings.get("chat_template")
    if isinstance(found, list):
        found = next((e.get("template") for e in found if isinstance(e, dict) and e.get("name") == "default"), None)
    return found if isinstance(found, str) else None


def _penalty(path: Path) -> float:
    value = _settings(path).get("repetition_penalty") or 1.0
    if not isinstance(value, int | float) or not 0 < value < HIGHEST_PENALTY:
        raise ModelError(f"{path}: repetition_penalty must be a number above 0, got {value!r:.40}")
    return float(value)


def _stops(folder: Path) -> tuple[int, ...]:
    """transformers' `generate` ends at these; generation_config.json comes before config.json."""
    for name in ("generation_config.json", "config.json"):
        found = _settings(folder / name).get("eos_token_id")
        if found is not None:
            ids = found if isinstance(found, list) else [found]
            if not all(isinstance(id, int) and not isinstance(id, bool) for id in ids):
                raise ModelError(f"{folder / name}: eos_token_id must be a number or a list of them, got {found!r:.40}")
            return tuple(ids)
    return ()

"""The models of a comparison: found and identified at once, opened only when something has to be measured with them."""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trimtab.core.errors import ModelError, UsageError
from trimtab.core.progress import Watcher
from trimtab.host.checkpoint import load, load_tokenizer, local_folder
from trimtab.host.fingerprint import fingerprint
from trimtab.host.folder_checks import check_links
from trimtab.host.model_assets import resolve_model


@dataclass(frozen=True)
class Contender:
    """name: how it is called in tables. folder: its files. fingerprint: of their contents."""

    name: str
    folder: Path
    fingerprint: str

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Raises UsageError where there is none."""
        return self._needed(load_tokenizer(self.folder))

    def open(self, place: dict[str, Any]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """place: device and dtype, as `load` takes them."""
        model, tokenizer = load(self.folder, **place)
        return model, self._needed(tokenizer)

    @contextmanager
    def named(self) -> Iterator[None]:
        """What is wrong with the model inside is said with its name."""
        try:
            yield
        except ModelError as error:
            raise ModelError(f"{self.name}: {error}") from error

    def _needed(self, tokenizer: PreTrainedTokenizerBase | None) -> PreTrainedTokenizerBase:
        if tokenizer is None:
            raise UsageError(f"{self.name} has no tokenizer; copy the tokenizer files of the original model into it")
        return tokenizer


def contenders(given: Sequence[str], watch: Watcher) -> list[Contender]:
    """In the order given. Raises UsageError for fewer than two or one given twice, ModelError for one that is not there."""
    if len(given) < 2:
        raise UsageError("nothing to compare with; give a base model and at least one other")
    folders = [local_folder(resolve_model(name, watch)) for name in given]
    places = [folder.resolve() for folder in folders]
    for number, place in enumerate(places):
        if place in places[:number]:
            raise UsageError(f"{given[number]} is given twice; compare different models")
    for folder in folders:
        check_links(folder)  # before files are read that lead elsewhere
    found = zip(_names(given), folders, strict=True)
    return [Contender(name, folder, fingerprint(folder)) for name, folder in found]


def _names(given: Sequence[str]) -> list[str]:
    """The last part of a path where that tells the models apart; hub names and assets as they are."""
    short = [Path(name).name if Path(name).expanduser().is_dir() else name for name in given]
    return short if len(set(short)) == len(short) else list(given)


class OpenModels:
    """At most two models in memory: the base stays once it was needed, the others take turns."""

    def __init__(self, base: Contender, place: dict[str, Any]):
        self._base, self._place = base, place
        self._held: dict[Contender, tuple[PreTrainedModel, PreTrainedTokenizerBase]] = {}

    def __call__(self, wanted: Contender) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        if wanted not in self._held:
            self._drop_others(wanted)
            self._held[wanted] = wanted.open(self._place)
        return self._held[wanted]

    def _drop_others(self, wanted: Contender) -> None:
        if wanted != self._base:
            for held in [held for held in self._held if held != self._base]:
                del self._held[held]
            gc.collect()  # modules refer to each other in circles; two large models would stay until Python noticed

"""Small models without a history: trained here, from random weights, on the calibration passages.

A model that was rounded before it came to us makes round-to-nearest look better than it is, and one that was trained by
others on unknown text cannot be trained again. These are neither. They are Llamas of a few million parameters with a
byte-level vocabulary of their own and a tied head, trained for minutes. Every name stands for a frozen description; the
trained model lies in the cache under the digest of that description, so a changed description is another model.

`own-5m-outliers` is `own-5m` with channels that stand out, `own-5m-weight-outliers` with columns of matrices that do
(`outliers.py`); both compute exactly what `own-5m` does. `own-5m-tuned` is `own-5m` trained on, on problems of arithmetic: with
it as the base, a pair from before and after fine-tuning.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from trimtab.core.errors import ModelError, did_you_mean
from trimtab.core.progress import Progress, Watcher, unwatched
from trimtab.core.seeds import Seeds
from trimtab.data.assets import cache_root, cached
from trimtab.data.text import documents
from trimtab.data.windows import encoder, pack
from trimtab.host import manifest
from trimtab.host.checkpoint import load, save
from trimtab.host.locks import alone
from trimtab.host.outliers import Outliers, inject
from trimtab.host.pretrain import Course, train
from trimtab.host.source import history, record, recorded
from trimtab.host.vocabulary import trained_tokenizer

VERSION = 1  # of initialisation and training loop: raise it when they change, and a cached model is not taken for a new one
SPEED = 1.5e11  # float32 operations per second that two processor cores reach in training, roughly; for estimates


@dataclass(frozen=True)
class Homegrown:
    """Everything a model of ours depends on. The head is the embedding; a head of attention has width / heads channels."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    ff: int
    vocabulary: int
    course: Course
    texts: tuple[str, ...] = ("asset:squad-drop", "asset:coqa")

    @property
    def parameters(self) -> int:
        attention = 2 * self.width**2 + 2 * self.width * (self.width // self.heads * self.kv_heads)
        block = attention + 3 * self.width * self.ff + 2 * self.width
        return self.vocabulary * self.width + self.layers * block + self.width

    @property
    def minutes(self) -> float:
        return self.minutes_of(self.course)

    def minutes_of(self, course: Course) -> float:
        """A rough guess for two processor cores: six operations per parameter and token."""
        return 6 * self.parameters * course.tokens / SPEED / 60

    def config(self) -> LlamaConfig:
        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            intermediate_size=self.ff,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=self.course.length,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=None,
        )


@dataclass(frozen=True)
class Tuning:
    """What a trained model is trained on with, all weights of it."""

    course: Course
    texts: tuple[str, ...] = ("asset:gsm8k",)


@dataclass(frozen=True)
class Named:
    """A name taken apart: which description, and which variant of the model that is trained from it."""

    base: str
    grown: Homegrown
    variant: str = ""

    @property
    def name(self) -> str:
        return f"{self.base}-{self.variant}" if self.variant else self.base

    @property
    def trained(self) -> "Named":
        """The one without a variant."""
        return Named(self.base, self.grown)

    @property
    def place(self) -> Path:
        """The folder in the cache, there or not. Its name changes with everything that the weights depend on."""
        content = {"version": VERSION, "grown": asdict(self.grown), "outliers": None, **_spelled(self.variant)}
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return cache_root() / f"{self.name}-{digest[:8]}"

    @property
    def minutes(self) -> float:
        """About how long `grow` would take on two processor cores; 0 where nothing has to be trained."""
        if self.place.is_dir():
            return 0.0
        way = VARIANTS.get(self.variant)
        more = self.grown.minutes_of(way.course) if isinstance(way, Tuning) else 0.0
        return more if self.trained.place.is_dir() else more + self.grown.minutes


FAMILY: Mapping[str, Homegrown] = {
    "own-2m": Homegrown(4, 256, 8, 2, 384, 2048, Course(steps=750, batch=1)),
    "own-5m": Homegrown(6, 256, 8, 4, 640, 4096, Course(steps=2500, batch=1)),
    "own-15m": Homegrown(8, 384, 6, 3, 1024, 4096, Course(steps=1900, batch=2)),
    "own-30m": Homegrown(10, 512, 8, 4, 1280, 4096, Course(steps=2500, batch=2)),
}
VARIANTS: Mapping[str, Outliers | Tuning] = {
    "outliers": Outliers(exponent=4),
    "weight-outliers": Outliers(exponent=-4),
    "tuned": Tuning(Course(steps=400, batch=1, learning_rate=5e-4)),
}


def family() -> list[Named]:
    """All there are, smallest first, each followed by its variants."""
    return [Named(base, grown, variant) for base, grown in FAMILY.items() for variant in ("", *VARIANTS)]


def named(name: str) -> Named:
    """What a name such as "own-5m" or "own-5m-outliers" stands for. Raises ModelError with the nearest name."""
    known = {wanted.name: wanted for wanted in family()}
    if name not in known:
        raise ModelError(f"no model of ours is called {name!r}{did_you_mean(name, known)}")
    return known[name]


def grow(wanted: Named, watch: Watcher = unwatched) -> Path:
    """The model's folder in the cache, trained at the first call.

    A training that was stopped goes on from its last checkpoint and ends in the same weights.
    """
    if wanted.place.is_dir():
        return wanted.place
    way = VARIANTS.get(wanted.variant)
    if isinstance(way, Outliers):
        return _varied(wanted, way, watch)
    # Training twice at the same time would give the same model, half as fast.
    with alone(wanted.place.with_name(f".{wanted.place.name}.lock")):
        if wanted.place.is_dir():
            return wanted.place
        return _trained(wanted, watch) if way is None else _tuned(wanted, way, watch)


def untrained(grown: Homegrown) -> LlamaForCausalLM:
    """Random weights from the seed alone, float32."""
    # The library's own initialisation draws from the global generator; what it drew is thrown away.
    with torch.random.fork_rng(devices=[]):
        model = LlamaForCausalLM(grown.config())
    seeds = Seeds(grown.course.seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=_spread(grown, name), generator=seeds.at(name))
    return model


def _spread(grown: Homegrown, name: str) -> float:
    """Matrices that write into the residual stream start smaller, the more of them there are."""
    if "embed" in name:
        return 0.1
    writes = name.endswith(("o_proj.weight", "down_proj.weight"))
    return 1 / math.sqrt(grown.width * (2 * grown.layers if writes else 1))


def reading(grown: Homegrown) -> tuple[PreTrainedTokenizerBase, list[str]]:
    """The vocabulary of a model of ours, made from what it reads, and what it reads."""
    texts = [text for source in grown.texts for text in documents(source)]
    return trained_tokenizer(texts, grown.vocabulary), texts


def _trained(wanted: Named, watch: Watcher) -> Path:
    grown, course = wanted.grown, wanted.grown.course
    watch(Progress("vocabulary", 0, 1))
    tokenizer, texts = reading(grown)
    note = f"trained from scratch on {course.tokens:,} tokens; a small model without a history"
    content = {"note": note, "name": wanted.name, "description": asdict(grown)}
    return _taught(wanted, untrained(grown), tokenizer, texts, course, content, watch)


def _tuned(wanted: Named, tuning: Tuning, watch: Watcher) -> Path:
    base = grow(wanted.trained, watch)
    model, tokenizer = load(base)
    assert isinstance(model, LlamaForCausalLM)
    assert tokenizer is not None
    texts = [text for source in tuning.texts for text in documents(source)]
    note = f"{history(base)}; then trained on, on {tuning.course.tokens:,} tokens of {', '.join(tuning.texts)}"
    content = {**recorded(base), "note": note, "name": wanted.name, "tuning": asdict(tuning)}
    return _taught(wanted, model, tokenizer, texts, tuning.course, content, watch)


def _taught(
    wanted: Named,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    course: Course,
    said: Mapping[str, Any],
    watch: Watcher,
) -> Path:
    """Trains and publishes. What was left by a training that was stopped lies beside the place until then."""
    stream = pack(texts, encoder(tokenizer), course.length).flatten()
    unfinished = wanted.place.with_name(f"{wanted.place.name}.training")
    done = train(model, stream, course, unfinished, watch)
    content = {
        **said,
        "tokens": course.tokens,
        "training_loss": done.loss,
        "text_tokens": len(stream),
        "seconds": done.seconds,
        "threads": torch.get_num_threads(),
    }
    folder = cached(wanted.place.name, lambda folder: _write(model, tokenizer, folder, content))
    shutil.rmtree(unfinished, ignore_errors=True)  # not needed any more; what cannot be removed does no harm
    return folder


def _varied(wanted: Named, outliers: Outliers, watch: Watcher) -> Path:
    base = grow(wanted.trained, watch)
    model, tokenizer = load(base)
    assert isinstance(model, LlamaForCausalLM)
    inject(model, outliers)
    note = f"{history(base)}; channels that stand out by {outliers.factor:g} were put in, the function is the same"
    content = {**recorded(base), "note": note, "name": wanted.name, "outliers": asdict(outliers)}
    return cached(wanted.place.name, lambda folder: _write(model, tokenizer, folder, content))


def _spelled(variant: str) -> dict[str, Any]:
    """What a variant adds to the description."""
    way = VARIANTS.get(variant)
    if way is None:
        return {}
    return {"outliers" if isinstance(way, Outliers) else "tuning": asdict(way)}


def _write(model: Any, tokenizer: PreTrainedTokenizerBase | None, folder: Path, content: dict[str, Any]) -> None:
    save(model, tokenizer, folder)
    record(folder, content)
    manifest.write(folder)  # once more, now with the record

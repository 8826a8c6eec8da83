"""Who answers: the native session where it covers the model, transformers' `generate` elsewhere. From here both look the same.

The native way imports neither torch nor transformers, so that the first token is there within two seconds.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from trimtab.cli.manners import complain
from trimtab.core.errors import UsageError, did_you_mean
from trimtab.runtime import Batch, Runtime, Unsupported
from trimtab.runtime.template import render
from trimtab.runtime.text import Text

if TYPE_CHECKING:
    from trimtab.runtime import Sampling

ENGINES = ("auto", "native", "torch")
WHOLE = 16  # bits of keys and values that are held as they come
Hear = Callable[[int], None]


class Voice(Protocol):
    """A model that says something. penalty: on repetition, that the model's files ask for. about: one line about what runs."""

    engine: str
    penalty: float
    about: str

    def encode(self, text: str, special: bool) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def conversation(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The text of a conversation up to where the answer begins. Raises `UsageError` if the model knows none."""
        ...

    def say(self, ids: Sequence[int], new_tokens: int, sampling: "Sampling", hear: Hear) -> None:
        """Continues ids; each new one is handed to `hear` at once. What equals the ids of the last call is not read again."""
        ...

    def say_together(self, ids: Sequence[Sequence[int]], new_tokens: int, samplings: Sequence["Sampling"]) -> list[list[int]]:
        """What continues each of several ids, as if it were alone; nothing is kept for later calls."""
        ...


class Native:
    """The native session. It keeps what it has read: a conversation that grows is not read from the beginning again."""

    engine = "native"

    def __init__(self, folder: Path, threads: int | None):
        self.text = Text.open(folder)
        runtime = Runtime.open(folder, threads=threads)
        self.session = runtime.session()
        self.penalty = self.text.penalty
        self.about = f"native, {runtime.kernel}, {runtime.threads} thread{'s' if runtime.threads > 1 else ''}"
        self.held: list[int] = []

    def encode(self, text: str, special: bool) -> list[int]:
        return self.text.encode(text, special)

    def decode(self, ids: Sequence[int]) -> str:
        return self.text.decode(ids)

    def conversation(self, messages: Sequence[Mapping[str, str]]) -> str:
        return self.text.conversation(messages)

    def say(self, ids: Sequence[int], new_tokens: int, sampling: "Sampling", hear: Hear) -> None:
        kept = min(shared(self.held, ids), len(ids) - 1)  # at least one is read: its logits are what follows
        self.session.truncate(kept)
        self.held = list(ids)
        try:
            with closing(self.session.generate(ids[kept:], new_tokens, sampling, self.text.stops)) as made:
                for id in made:
                    self.held.append(id)
                    hear(id)
        finally:
            # Whatever ended it, the next call may only count on what the session has.
            del self.held[self.session.length :]

    def say_together(self, ids: Sequence[Sequence[int]], new_tokens: int, samplings: Sequence["Sampling"]) -> list[list[int]]:
        said: list[list[int]] = [[] for _ in ids]
        for number, id in Batch(self.session.runtime, len(ids)).generate(ids, new_tokens, samplings, self.text.stops):
            said[number].append(id)
        return said


class Torch:
    """transformers' `generate`, for what the native session does not cover. Reads everything anew at each call."""

    engine = "torch"

    def __init__(self, model: str, threads: int | None, place: Mapping[str, Any], kv_bits: int = WHOLE):
        from trimtab.cli.measure import open_with_tokenizer

        self.model, self.tokenizer = open_with_tokenizer(model, place)
        self.penalty = float(self.model.generation_config.repetition_penalty or 1.0)
        self.threads, self.kv_bits = threads, kv_bits
        self.about = "transformers' generate"

    def encode(self, text: str, special: bool) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=special)["input_ids"]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        said: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return said

    def conversation(self, messages: Sequence[Mapping[str, str]]) -> str:
        if not self.tokenizer.chat_template:
            raise UsageError("this tokenizer has no chat template; ask without chat")
        return render(self.tokenizer.chat_template, messages, self.tokenizer.special_tokens_map)

    def say(self, ids: Sequence[int], new_tokens: int, sampling: "Sampling", hear: Hear) -> None:
        from trimtab.measure.speed import torch_threads
        from trimtab.measure.text import answer
        from trimtab.tensors.products import fast_products

        with fast_products(), torch_threads(self.threads):
            answer(self.model, ids, new_tokens, sampling, hear, self.kv_bits)

    def say_together(self, ids: Sequence[Sequence[int]], new_tokens: int, samplings: Sequence["Sampling"]) -> list[list[int]]:
        said: list[list[int]] = [[] for _ in ids]
        for each, sampling, heard in zip(ids, samplings, said, strict=True):
            self.say(each, new_tokens, sampling, heard.append)
        return said


def open_voice(
    model: str,
    engine: str,
    threads: int | None,
    dtype: str | None = None,
    device: str | None = None,
    memory: str | None = None,
    kv_bits: int = WHOLE,
) -> Voice:
    """The native session, or, with a line on stderr that says why not, transformers. Raises `UsageError`.

    engine: native (or an error), torch (asked for), auto. dtype, device, memory and kv_bits belong to torch: with them it is
    meant.
    """
    if engine not in ENGINES:
        raise UsageError(f"--engine cannot be {engine!r}{did_you_mean(engine, ENGINES)}")
    torchs = {"--dtype": dtype, "--device": device, "--memory": memory, "--kv-bits": None if kv_bits == WHOLE else kv_bits}
    asked = next((name for name, value in torchs.items() if value is not None), "")
    if engine == "native" and asked:
        raise UsageError(f"{asked} belongs to the torch engine; leave it out, or ask with --engine torch")
    why = ""
    if engine != "torch" and not asked:
        try:
            return Native(folder_of(model), threads)
        except Unsupported as error:
            if engine == "native":
                raise
            why = str(error)
    from trimtab.cli.options import device_of, dtype_of

    voice = Torch(model, threads, {"device": device_of(device), "dtype": dtype_of(dtype), "memory": memory}, kv_bits)
    if why:  # now that it is true
        complain(f"{why}; transformers' generate answers instead", "note: ")
    return voice


def folder_of(model: str) -> Path:
    """Where a model is, its files checked against its manifest. Raises `ModelError`."""
    from trimtab.host import folder_checks, manifest
    from trimtab.host.publish import is_unfinished

    path = Path(model).expanduser()
    if not path.is_dir() or is_unfinished(path):
        # Everything but a plain folder may have to be fetched, converted or recovered first, which takes longer anyway.
        from trimtab.host.checkpoint import local_folder
        from trimtab.host.model_assets import resolve_model

        path = local_folder(resolve_model(model))
    folder_checks.check_links(path)
    manifest.verify(path)
    return path


def shared(left: Sequence[int], right: Sequence[int]) -> int:
    """How many ids two sequences have in common at their beginning."""
    pairs = zip(left, right, strict=False)
    return next((number for number, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))

"""Open a folder, hold conversations with what is in it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from trimtab.core.errors import ModelError, UsageError
from trimtab.runtime.build import build
from trimtab.runtime.native import instruction_set, native

ACTIVATIONS = {"float32": 0, "int8": 1, "int16": 2}
KV = ("bfloat16", "int8", "float32")
HEAD_BITS = (4, 8, 16, 32)
CHUNK = 256  # prompt tokens that are read at once
STREAMED = 8  # tokens that are made before Python looks again
Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen, with the meaning that these numbers have in transformers.

    temperature 0: the largest logit, of equal ones the first. top_k 0: all tokens. seed: the same one draws the same tokens on
    every machine that makes the same logits.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Runtime:
    """A model in memory, shared by all its sessions. Made by `open`.

    architecture: the model_type of its config; context: positions at most; bytes_per_token: of weights that one decoded token
    reads; kernel: the instruction set; head_bits: of a head that was rounded on opening, None for one as stored.
    """

    architecture: str
    layers: int
    vocabulary: int
    context: int
    bytes_per_token: int
    kernel: str
    threads: int
    activations: str
    kv: str
    head_bits: int | None
    _model: Any = field(repr=False)

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        threads: int | None = None,
        activations: str = "int16",
        head_bits: int | None = None,
        kv: str = "bfloat16",
        context: int | None = None,
        instructions: str | None = None,
    ) -> Self:
        """Maps the files and lays out the weights for this processor.

        threads: all cores by default; more than there are count as all, and `threads` says how many that is. activations:
        "float32" multiplies exactly the stored weights, "int16" and "int8" round what enters a product with codes, and to
        bfloat16, where many tokens are read at once, what enters one with matrices of that type. head_bits: of a plain head; 16
        by default, which is bfloat16; 32 leaves it as it is stored, 8 and 4 make it codes. kv: how keys and
        values are kept. context: fewer positions than the model has. Raises `Unsupported` for a model that is not covered,
        `ModelError` for one that is damaged, `UsageError` for the rest.
        """
        cores = native().cores()
        _check(activations, ACTIVATIONS, "activations")
        _check(kv, KV, "kv")
        if threads is not None and threads < 1:
            raise UsageError(f"threads must be at least 1, got {threads}")
        if head_bits not in (None, *HEAD_BITS):
            raise UsageError(f"head_bits must be one of {', '.join(map(str, HEAD_BITS))}, got {head_bits}")
        kernel = instruction_set(instructions)
        built = build(Path(folder), head_bits or 16, context)
        return cls(
            architecture=built.architecture,
            layers=built.layers,
            vocabulary=built.model.vocabulary,
            context=built.model.context,
            bytes_per_token=built.model.nbytes,
            kernel=kernel,
            threads=min(threads or cores, cores),
            activations=activations,
            kv=kv,
            head_bits=built.head_bits,
            _model=built.model,
        )

    def session(self) -> "Session":
        """A new conversation, with keys and values of its own."""
        digits = ACTIVATIONS[self.activations]
        return Session(self, native().Session(self._model, self.kernel, self.threads, digits, self.kv, CHUNK))


class Session:
    """One conversation. Tokens that were read or made stay in it, and what comes next continues them.

    Not to be shared between threads at the same time; sessions of one runtime may run in several.
    """

    def __init__(self, runtime: Runtime, made: Any):
        self.runtime = runtime
        self._vocabulary = runtime.vocabulary
        self._native = made

    def another(self) -> "Session":
        """A new conversation that can go on together with this one."""
        return Session(self.runtime, self._native.another())

    @property
    def length(self) -> int:
        """Tokens in the conversation."""
        return int(self._native.length)

    @property
    def cache_bytes(self) -> int:
        """Memory that keys and values take."""
        return int(self._native.cache_bytes)

    def prefill(self, ids: Sequence[int], every: bool = False) -> Logits:
        """Reads ids. Returns the logits of the last position [vocabulary], or of all of these [n, vocabulary].

        Raises `UsageError` for no ids, ids out of the vocabulary, or more than the context holds; `ModelError` if the logits are
        not finite. Nothing is read then.
        """
        given = _ids(ids)
        logits = np.empty((len(given) if every else 1, self._vocabulary), np.float32)
        told(self._native.read, given, logits, every)
        return logits if every else logits[0]

    def read(self, ids: Sequence[int]) -> None:
        """Reads ids, at least one. Raises as `prefill` does."""
        told(self._native.read, _ids(ids), None, False)

    def step(self, id: int) -> Logits:
        """Reads one id. Returns the logits that follow it, [vocabulary]."""
        return self.prefill([id])

    def generate(
        self, ids: Sequence[int], new_tokens: int, sampling: Sampling | None = None, stop: Iterable[int] = ()
    ) -> Iterator[int]:
        """Reads ids, then yields at most `new_tokens` tokens as they are made; the last one is of `stop`, if one came.

        Ends early where the context is full. What was not taken from the iterator is not part of the conversation. ids may be
        empty if there was something before. Raises as `prefill` does, when the first token is asked for.
        """
        sampler, stops = sampler_of(sampling or Sampling()), list(stop)
        if len(ids):
            self.read(ids)
        yielded = 0
        while yielded < new_tokens:
            before = self.length
            made = told(self._native.generate, sampler, min(STREAMED if yielded else 1, new_tokens - yielded), stops)
            taken = 0
            try:
                for id in made:
                    taken += 1
                    yielded += 1
                    yield id
            finally:
                if taken < len(made):
                    self._native.truncate(before + taken)
            if not made or made[-1] in stops:
                return

    def time_stages(self, on: bool) -> None:
        """From now on, or no longer: looks where the time goes. That costs some percent of it."""
        told(self._native.time_stages, on)

    @property
    def stages(self) -> dict[str, float]:
        """Seconds since `time_stages(True)`, in the order of a token. They add up to the time of all that was read and made.

        Of what threads did at the same time, the mean over them. "inputs": norms, curves, and rounding what enters products;
        "choice": what comes after the head; "waiting": what threads had to wait for each other.
        """
        return dict(self._native.stages)

    def truncate(self, length: int) -> None:
        """Forgets all but the first `length` tokens. Raises `UsageError`."""
        told(self._native.truncate, length)

    def reset(self) -> None:
        """Forgets everything."""
        self._native.truncate(0)


def together(sessions: Sequence[Session], samplers: Sequence[Any], count: int, stops: Sequence[int]) -> list[list[int]]:
    """At most `count` tokens of each of some sessions that `another` made, in one pass over the weights per token."""
    made = told(native().together, [session._native for session in sessions], list(samplers), count, list(stops))
    return [list(said) for said in made]


def sampler_of(sampling: Sampling) -> Any:
    """The compiled module's. Raises `UsageError`."""
    s = sampling
    if not 0 <= s.seed < 1 << 64:
        raise UsageError(f"seed must be from 0 to {(1 << 64) - 1}, got {s.seed}")
    return told(native().Sampler, s.temperature, s.top_k, s.top_p, s.repetition_penalty, s.seed)


def _ids(ids: Sequence[int]) -> NDArray[np.int32]:
    given = np.asarray(ids, np.int64).reshape(-1)
    if len(given) and (int(given.min()) < 0 or int(given.max()) >= 1 << 31):
        raise UsageError("token ids must be from 0 to the size of the vocabulary")
    return given.astype(np.int32)


def told(call: Any, *arguments: Any) -> Any:
    """The call, with what it refuses told as a `UsageError`, and what went wrong inside as a `ModelError`."""
    try:
        return call(*arguments)
    except ValueError as error:
        raise UsageError(str(error)) from error
    except RuntimeError as error:
        raise ModelError(str(error)) from error


def _check(value: str, known: Iterable[str], name: str) -> None:
    if value not in known:
        raise UsageError(f"{name} must be one of {', '.join(known)}, got {value!r}")

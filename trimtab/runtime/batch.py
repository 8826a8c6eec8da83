"""Several conversations at a time: a tile of weights is read once for all of them.

Decoding one conversation is bound by reading weights, so a few more cost little; every one says what it would say alone.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from trimtab.core.errors import UsageError
from trimtab.runtime.runtime import STREAMED, Runtime, Sampling, sampler_of, together

MOST_SEEDS = 1 << 64


class Batch:
    """Conversations of one runtime, each with a length, keys and values of its own; `sessions` may be used one by one, too."""

    def __init__(self, runtime: Runtime, size: int):
        if size < 1:
            raise UsageError(f"a batch has at least one conversation, got {size}")
        first = runtime.session()
        self.sessions = [first, *(first.another() for _ in range(size - 1))]

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        new_tokens: int,
        sampling: Sampling | Sequence[Sampling] | None = None,
        stop: Iterable[int] = (),
    ) -> Iterator[tuple[int, int]]:
        """Reads a prompt into every conversation, then yields (number of the conversation, token) as tokens are made.

        Each ends as in `Session.generate`: after `new_tokens`, with a token of `stop`, or where its context is full. sampling:
        one for each, or one for all, of which conversation i draws with seed + i. A prompt may be empty if there was something
        before. What was not taken from the iterator is not part of the conversations. Raises `UsageError` and `ModelError` as
        there, when the first token is asked for.
        """
        samplers, stops = [sampler_of(each) for each in self._samplings(sampling)], list(stop)
        if len(prompts) != len(self.sessions):
            raise UsageError(f"{len(prompts)} prompts were given for {len(self.sessions)} conversations")
        for session, ids in zip(self.sessions, prompts, strict=True):
            if len(ids):
                session.read(ids)
        going, made = list(range(len(prompts))), 0
        while going and made < new_tokens:
            count = min(STREAMED if made else 1, new_tokens - made)
            made += count
            yield from self._some(going, samplers, count, stops)

    def _samplings(self, sampling: Sampling | Sequence[Sampling] | None) -> list[Sampling]:
        if sampling is None or isinstance(sampling, Sampling):
            return seeded(sampling or Sampling(), len(self.sessions))
        if len(sampling) != len(self.sessions):
            raise UsageError(f"{len(sampling)} ways to sample were given for {len(self.sessions)} conversations")
        return list(sampling)

    def _some(self, going: list[int], samplers: list[Any], count: int, stops: list[int]) -> Iterator[tuple[int, int]]:
        """The next `count` tokens of all that are going; those that end are taken out of `going`."""
        sessions = [self.sessions[i] for i in going]
        before, taken = [session.length for session in sessions], [0] * len(going)
        made = together(sessions, [samplers[i] for i in going], count, stops)
        ended = {i for i, said in zip(going, made, strict=True) if len(said) < count or (said and said[-1] in stops)}
        numbers = list(going)
        try:
            for step in range(count):
                for place, said in enumerate(made):
                    if step < len(said):
                        taken[place] += 1
                        yield numbers[place], said[step]
        finally:
            for session, length, kept, said in zip(sessions, before, taken, made, strict=True):
                if kept < len(said):
                    session.truncate(length + kept)
        going[:] = [i for i in going if i not in ended]


def seeded(sampling: Sampling, count: int) -> list[Sampling]:
    """The same way to sample `count` times, each with the seed after the one before."""
    return [replace(sampling, seed=(sampling.seed + i) % MOST_SEEDS) for i in range(count)]

"""What a search is handed: levels made once, candidates judged by whoever is there, and nothing judged twice.

Every outcome is a line in a file, named by all that decides about it: the levels, the candidate, the tokens. So the same search
goes on where it was stopped, by asking the same questions again; another search over the same levels profits, too. A candidate
that cannot be judged is such a line as well: it counts as infinitely bad, and the search goes on.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trimtab.anatomy import Anatomy
from trimtab.core.errors import UsageError
from trimtab.core.kinds import Candidate, LinearWeight, Searches, Trials
from trimtab.core.places import Site
from trimtab.core.progress import Progress, Watcher
from trimtab.core.recipe import Step
from trimtab.engine.judge import Judge, Material, Outcome
from trimtab.engine.levels import Levels, digest, digest_of

if TYPE_CHECKING:
    from trimtab.engine.run import Bench

OUTCOMES = "outcomes.jsonl"
Weights = Mapping[str, LinearWeight]  # by site name
Judges = Callable[[Sequence[Candidate], Sequence[int]], Iterable[tuple[int, Outcome]]]
Spread = Callable[[Material], AbstractContextManager[Judges]]


@contextmanager
def in_turn(material: Material) -> Iterator[Judges]:
    """One judge, in this process."""
    yield Judge(replace(material, model=deepcopy(material.model))).losses


@dataclass(frozen=True)
class Judging:
    """How candidates are judged. held_out: token ids [count, length]; folder: for levels and outcomes; spread: by whom.

    stamp: what else decides about results, such as the versions of the code.
    """

    held_out: Tensor
    folder: Path
    spread: Spread = in_turn
    stamp: str = ""

    def windows(self, tokens: int) -> Tensor:
        """The first ones, of at least so many tokens as far as there are."""
        return self.held_out[: -(-tokens // self.held_out.shape[1])]


@dataclass
class Search:
    """The `Trials` of one search; what it did is told by `summary`."""

    judges: Judges
    outcomes: "Outcomes"
    held_out: Tensor
    watch: Watcher
    total: int  # windows that will be read, at most
    name: str
    read: int = 0
    asked: int = 0
    judged: int = 0
    begun: float = field(default_factory=perf_counter)
    failed: dict[Candidate, str] = field(default_factory=dict)

    @property
    def windows(self) -> int:
        return len(self.held_out)

    def losses(self, candidates: Sequence[Candidate], windows: Sequence[int] | None = None) -> list[float]:
        chosen = list(range(self.windows)) if windows is None else list(windows)
        text = digest([self.held_out[chosen]])
        distinct = list(dict.fromkeys(candidates))
        missing = [c for c in distinct if self.outcomes.get(c, text) is None]
        self.asked += len(distinct)
        self._tell(0)
        for number, outcome in self.judges(missing, chosen) if missing else ():
            self.outcomes.add(missing[number], text, outcome)
            self.judged += 1
            self._tell(len(chosen))
        found = {c: self.outcomes.get(c, text) or (None, "was not judged") for c in distinct}
        self.failed |= {c: why for c, (loss, why) in found.items() if loss is None}
        return [inf if (loss := found[c][0]) is None else loss for c in candidates]

    def _tell(self, windows: int) -> None:
        self.read += windows
        self.watch(Progress("search", min(self.read, self.total), self.total, f"candidate {self.judged}"))

    def summary(self) -> str:
        minutes = (perf_counter() - self.begun) / 60
        text = f"{self.name} asked for {self.asked} candidates on up to {self.held_out.numel()} held-out tokens; "
        text += f"{self.judged} were judged, in {minutes:.1f} minutes, the others had been before"
        if self.failed:
            text += f"; {len(self.failed)} could not be judged ({next(iter(self.failed.values()))})"
        return text


class Outcomes:
    """Lines of a file: key, and loss or reason. A line that a killed process left unfinished does not count."""

    def __init__(self, path: Path, key: str):
        self.path, self.key = path, key
        self.known: dict[str, Outcome] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        *lines, torn = path.read_bytes().split(b"\n") if path.exists() else [b""]
        self.open = "\n" if torn else ""  # what ends a line that a killed process left
        for line in lines:
            try:
                name, loss, why = json.loads(line)
            except ValueError:  # such a line, ended since
                continue
            self.known[name] = loss, why

    def get(self, candidate: Candidate, text: str) -> Outcome | None:
        return self.known.get(self._name(candidate, text))

    def add(self, candidate: Candidate, text: str, outcome: Outcome) -> None:
        name = self._name(candidate, text)
        self.known[name] = outcome
        with self.path.open("a", encoding="utf-8") as file:
            file.write(self.open + json.dumps([name, *outcome]) + "\n")
        self.open = ""

    def _name(self, candidate: Candidate, text: str) -> str:
        return digest([], self.key, repr(candidate), text)


@dataclass(frozen=True)
class Job:
    """What decides about levels besides the model: calibration tokens, words, dtype; and what makes one, by site name."""

    tokens: Sequence[Tensor]
    words: Sequence[str]
    compute: torch.dtype
    make: Callable[[Any], Weights]


@contextmanager
def searching(
    method: Any, anatomy: Anatomy, sites: Sequence[Site] | None, judging: Judging, job: Job, watch: Watcher
) -> Iterator[Search]:
    """What `method` needs as `Trials`. sites: that are the places; None: the blocks are.

    Raises `UsageError` for sites outside of the blocks, which no candidate can change.
    """
    if not isinstance(method, Searches):
        raise UsageError(f"{method} needs trials and does not say which: it lacks `strengths` or `trials`")
    if outside := next((site.name for site in sites or () if site.block is None), None):
        raise UsageError(f"{method.card.id}: {outside} is in no block; restrict `where` to the blocks")  # type: ignore[attr-defined]
    names = tuple(site.name for site in sites or ())
    key = digest(job.tokens, judging.stamp, digest_of(anatomy.model), str(job.compute), *job.words, *names)
    Levels(judging.folder, key).fill(method.strengths, job.make)
    held_out = judging.windows(method.held_out)  # type: ignore[attr-defined]
    _, total = method.trials(range(len(anatomy.blocks)) if sites is None else sites, len(held_out))
    material = Material(anatomy.model, names, held_out, job.compute, judging.folder, key)
    with judging.spread(material) as judges:
        yield Search(judges, Outcomes(judging.folder / OUTCOMES, key), held_out, watch, total, method.card.id)  # type: ignore[attr-defined]


@contextmanager
def on_what_is_shown(batches: Sequence[Tensor]) -> Iterator[Judging]:
    """Where no other text is at hand: candidates are judged on the calibration tokens, and nothing is kept."""
    with TemporaryDirectory(prefix="trimtab-") as place:
        yield Judging(torch.cat(list(batches)), Path(place))


@contextmanager
def trials(
    bench: "Bench", anatomy: Anatomy, number: int, step: Step, sites: Sequence[Site], make: Callable[[Any], Weights]
) -> Iterator[Search | None]:
    """Of step `number`, if it searches: over levels of the sites, which `make` makes, or over blocks. Else None."""
    method = step.by or step.method
    if Trials not in method.needs:
        yield None
        return
    words = [str(number), str(bench.seeds.seed), str(step.method), str(bench.packed)]
    job, own = Job(bench.batches, words, bench.compute, make), bench.judging is None
    places = None if step.by is None else sites
    with ExitStack() as stack:
        judging = bench.judging or stack.enter_context(on_what_is_shown(bench.batches))
        search = stack.enter_context(searching(method, anatomy, places, judging, job, bench.watch))
        yield search
    bench.notes.append(search.summary())
    if own:
        bench.notes.append(f"{method.card.id} had no held-out text: candidates were judged on the calibration tokens")

"""All claims, one after the other or side by side, each in a process of its own.

Only the parent hears of results, so only it writes them down. It also fetches or makes the models first: two children that
train the same small model at once would both do all the work.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from trimtab.core.card import Claim
from trimtab.core.errors import TrimtabError, UsageError, did_you_mean
from trimtab.core.progress import Progress, Watcher, unwatched
from trimtab.core.registry import ids, room
from trimtab.host.processes import running
from trimtab.measure.claim_worker import task_of
from trimtab.measure.claims import age, claims_of, find_claim
from trimtab.measure.evidence import missing
from trimtab.measure.side_store import SIDES, Ground
from trimtab.measure.sides import Setting

WORKER = "trimtab.measure.claim_worker"


@dataclass(frozen=True)
class Task:
    """One claim to be run; or, with the `earlier` line of a ledger, to be checked against it."""

    method: str
    claim: Claim
    setting: Setting
    earlier: Mapping[str, Any] | None = None

    @property
    def measured(self) -> Setting:
        """In which its sides are measured: of an earlier result only the first seed."""
        return self.setting if self.earlier is None else replace(self.setting, seeds=self.setting.seeds[:1])

    def __str__(self) -> str:
        return f"{self.method}/{self.claim.name}"


@dataclass(frozen=True)
class Outcome:
    """What came of a task: the line for the ledger, or None and the reason."""

    task: Task
    line: dict[str, Any] | None
    error: str = ""


@dataclass(frozen=True)
class Ready:
    """A task that can be started. missing: how many of its sides have to be measured."""

    task: Task
    ground: Ground
    missing: int


def chosen(wanted: Sequence[str] = (), place: str | None = None) -> list[tuple[str, Claim]]:
    """(method, claim) for every `METHOD` and `METHOD/CLAIM` wanted, all if none is; of one room, if one is given.

    Raises `UsageError` for a method, claim or room that there is not, and where nothing is left.
    """
    found = [pair for name in wanted for pair in _named(name)] if wanted else [(id, c) for id in ids() for c in claims_of(id)]
    if place is not None:
        rooms = {room(id) for id in ids()}
        if place not in rooms:
            raise UsageError(f"there is no room {place!r}{did_you_mean(place, rooms)}")
        found = [pair for pair in found if room(pair[0]) == place]
    if not found:
        raise UsageError(f"none of {', '.join(wanted) or 'the claims'} is in the room {place!r}")
    return list(dict.fromkeys(found))


def _named(name: str) -> list[tuple[str, Claim]]:
    method, slash, claim = name.partition("/")
    if slash:
        return [(method, find_claim(method, claim))]
    if not claims_of(method):
        raise UsageError(f"{method} makes no claims")
    return [(method, one) for one in claims_of(method)]


def is_missing(task: Task, results: Mapping[tuple[str, str], Mapping[str, Any]]) -> bool:
    """Whether there is no result of the claim as it stands, by the present code, on the model that is asked for."""
    line = results.get((task.method, task.claim.name))
    return line is None or bool(age(task.claim, line)) or line["model"] != task.setting.model


def run_programme(
    tasks: Sequence[Task], heard: Callable[[Outcome], None], jobs: int = 1, watch: Watcher = unwatched, loud: bool = False
) -> None:
    """Calls `heard` with an outcome for every task, as soon as there is one. Sides measured before are remembered.

    jobs: processes at a time, each on one thread. loud: they may write to stderr.
    """
    grounds: dict[tuple[str, ...], Ground | TrimtabError] = {}
    ready = []
    for number, task in enumerate(tasks):
        watch(Progress("open", number, len(tasks), task.setting.model))
        try:
            ground = _ground(task.setting, grounds, watch)
            afresh = task.earlier is None  # else the model itself is not measured again
            ready.append(Ready(task, ground, missing(task.claim, task.measured, ground, afresh)))
        except TrimtabError as error:
            heard(Outcome(task, None, str(error)))
    if ready:
        _run(ready, heard, min(jobs, len(ready)), watch, loud)


def _ground(setting: Setting, known: dict[tuple[str, ...], Ground | TrimtabError], watch: Watcher) -> Ground:
    """Looked up once, also what cannot be had: trying to fetch it again for every claim would take long."""
    names = (setting.model, setting.text, setting.calibration.text)
    if names not in known:
        try:
            known[names] = Ground.of(setting, watch)
        except TrimtabError as error:
            known[names] = error
    found = known[names]
    if isinstance(found, TrimtabError):
        raise found
    return found


def _run(ready: Sequence[Ready], heard: Callable[[Outcome], None], jobs: int, watch: Watcher, loud: bool) -> None:
    # One thread, because last digits depend on how many there are, and `claims check` compares digits.
    variables = {"OMP_NUM_THREADS": "1", "TRIMTAB_KERNELS": "0"}  # and the matrices that formats define
    tasks = [one.task for one in ready]
    asked = [task_of(t.method, t.claim.name, t.setting, one.ground, t.earlier) for t, one in zip(tasks, ready, strict=True)]
    tally = _Tally(ready, watch)
    with running(WORKER, asked, jobs, variables, loud) as said:
        for now in said:
            if now.what == "progress":
                tally.move(now.task, Progress(**now.value))
                continue
            tally.end(now.task)
            task = ready[now.task].task
            heard(Outcome(task, now.value) if now.what == "result" else Outcome(task, None, now.value))


class _Tally:
    """How far all tasks are, in sides that have yet to be measured, and one more for each task as a whole."""

    def __init__(self, ready: Sequence[Ready], watch: Watcher):
        self.names = [str(one.task) for one in ready]
        self.sides = [one.missing for one in ready]
        self.done, self.ended, self.watch = [0] * len(ready), 0, watch

    def move(self, number: int, now: Progress) -> None:
        if now.phase == SIDES:
            known = now.total - self.sides[number]
            self.done[number] = max(0, now.done - known)
        self._tell(f"{self.names[number]}: {now.phase} {now.done}/{now.total} {now.detail}".rstrip())

    def end(self, number: int) -> None:
        self.done[number], self.ended = self.sides[number], self.ended + 1
        self._tell(self.names[number])

    def _tell(self, detail: str) -> None:
        total = sum(self.sides) + len(self.names)
        self.watch(Progress("claims", sum(self.done) + self.ended, total, f"({self.ended} of {len(self.names)}) {detail}"))

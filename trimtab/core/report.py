"""What happened and what it cost, as values: for a person (Markdown) and for machines (JSON)."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Any


@dataclass(frozen=True)
class Measurement:
    """One number with its uncertainty. stderr: standard error of `value`; n: how many observations it rests on."""

    name: str
    value: float
    stderr: float
    n: int
    unit: str
    setting: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        spread = f" ± {self.stderr:.2g}" if self.stderr else ""
        return f"{self.name} {self.value:.4g}{spread} {self.unit} (n = {self.n})"


@dataclass(frozen=True)
class Receipt:
    """What one step did in one place. bits: stored bits per original weight, before and after.

    error: mean squared output error over the mean squared output, on what was seen there; None where nothing was seen.
    """

    step: int
    method: str
    place: str
    kind: str
    weights: int
    bits_before: float
    bits_after: float
    seconds: float
    error: float | None = None
    notes: dict[str, Any] = field(default_factory=dict)


class Profile:
    """Where the time goes: seconds by activity, `with profile("gram"): ...`. An inner activity is not also the outer's."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._running: list[str] = []
        self._since = perf_counter()

    @contextmanager
    def __call__(self, activity: str) -> Iterator[None]:
        self._charge()
        self._running.append(activity)
        try:
            yield
        finally:
            self._charge()
            self._running.pop()

    def _charge(self) -> None:
        now = perf_counter()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now


@dataclass
class Report:
    """Everything a run has to say. `profile`: seconds by activity; `peak_memory`: bytes, of the whole process;
    `seeded`: whether another seed could have given another model; `shown`: the calibration text, with the digest of its
    token ids; `made`: commit, versions, machine, date."""

    model: str
    recipe: dict[str, Any]
    receipts: list[Receipt] = field(default_factory=list)
    measurements: list[Measurement] = field(default_factory=list)
    profile: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    peak_memory: int = 0
    seeded: bool = True
    shown: dict[str, Any] = field(default_factory=dict)
    made: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # A report that is read back has said it already.
        self.notes = [*self.notes, *(note for note in _of_zeros(self.receipts) if note not in self.notes)]

    def json(self) -> dict[str, Any]:
        return asdict(self)

    def markdown(self) -> str:
        """Tables of steps and measurements."""
        lines = ["| step | places | bits before | bits after | output error | seconds |", "|---|---|---|---|---|---|"]
        for step, receipts in self._by_step():
            weights = sum(r.weights for r in receipts) or 1
            before = sum(r.bits_before * r.weights for r in receipts) / weights
            after = sum(r.bits_after * r.weights for r in receipts) / weights
            errors = [r.error for r in receipts if r.error is not None]
            error = f"{sum(errors) / len(errors):.3g}" if errors else "-"
            seconds = sum(r.seconds for r in receipts)
            lines.append(f"| `{step}` | {len(receipts)} | {before:.3f} | {after:.3f} | {error} | {seconds:.1f} |")
        if self.measurements:
            lines += ["", "| measure | value | standard error | n | unit |", "|---|---|---|---|---|"]
            lines += [f"| {m.name} | {m.value:.5g} | {m.stderr:.2g} | {m.n} | {m.unit} |" for m in self.measurements]
        return "\n".join([*lines, "", *(f"- {note}" for note in self.notes)])

    def _by_step(self) -> list[tuple[str, list[Receipt]]]:
        groups: dict[int, list[Receipt]] = defaultdict(list)
        for r in self.receipts:
            groups[r.step].append(r)
        return [(groups[k][0].method, groups[k]) for k in sorted(groups)]


SPARSE, PLAIN = ("masked", "nm"), (8.0, 16.0, 32.0)  # formats of sparse matrices; bits of a weight where zeros are stored


def _of_zeros(receipts: Iterable[Receipt]) -> list[str]:
    """Whoever sees that a pruned model is as large as before should not have to wonder."""
    last: dict[str, Receipt] = {}
    for receipt in receipts:
        if receipt.kind == "model":  # after which no matrix is what it was
            last.clear()
        last[receipt.place] = receipt
    count = sum(r.kind in SPARSE and r.bits_after in PLAIN for r in last.values())
    said = "sparse matrices are stored with their zeros: they open everywhere, and are neither smaller nor faster"
    return [f"{count} {said}; `--packed` stores what is left, and trimtab's runtime multiplies it as it is"] if count else []

"""What a comparison says, as values: numbers with their intervals, whatever they were written as.

The page and the Markdown are made from these alone. Every number is an `Estimate`: its 95 % interval is what the comparison
found where both models were scored on the same items, and 1.96 standard errors to each side elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, isfinite, nan
from typing import Any

from trimtab.core.errors import UsageError
from trimtab.report.reading import Node
from trimtab.report.receipts import Record, record

FORMAT = 1
NORMAL = 1.96  # standard errors to each side of a 95 % interval
VERDICTS = ("better", "worse", "not separable")
SHARE = "share"  # unit of what lies between 0 and 1 and is read as percent


@dataclass(frozen=True)
class Estimate:
    """A number, its 95 % interval (NaN where unknown; the number itself where it was counted), and what it rests on."""

    value: float
    low: float = nan
    high: float = nan
    n: int = 0
    unit: str = ""
    of: str = ""  # what n counts

    @property
    def half(self) -> float:
        """Half the interval; NaN where there is none, 0 where the number was counted."""
        return (self.high - self.low) / 2

    @property
    def is_known(self) -> bool:
        return isfinite(self.value)


UNKNOWN = Estimate(nan)


@dataclass(frozen=True)
class Difference:
    """The model minus the base on the same items, and the word for it."""

    estimate: Estimate
    verdict: str


@dataclass(frozen=True)
class Flips:
    """Items by who answered rightly: the base, then the model."""

    both_right: int
    right_to_wrong: int
    wrong_to_right: int
    both_wrong: int
    n: int


@dataclass(frozen=True)
class Bin:
    """Answers whose confidence lies between `low` and `high`: their mean confidence, and the share that was right."""

    low: float
    high: float
    confidence: float
    accuracy: float
    n: int


@dataclass(frozen=True)
class Calibration:
    error: Estimate
    bins: tuple[Bin, ...]


@dataclass(frozen=True)
class Task:
    """normalised: by likelihood per byte. bits: per byte of the one right answer, of tasks that have no choices."""

    accuracy: Estimate
    normalised: Estimate
    bits: Estimate
    calibration: Calibration | None


@dataclass(frozen=True)
class Slice:
    """Loss on a part of the text: a domain, or the positions of a window between `begin` and `end`."""

    name: str
    nats: Estimate
    begin: int = 0
    end: int = 0


@dataclass(frozen=True)
class Against:
    """A model against its base."""

    differences: dict[str, Difference] = field(default_factory=dict)  # perplexity (in nats per token), bits per byte
    kl: Estimate = UNKNOWN
    same_top: Estimate = UNKNOWN
    tasks: dict[str, Difference] = field(default_factory=dict)
    task_bits: dict[str, Difference] = field(default_factory=dict)
    flips: dict[str, Flips] = field(default_factory=dict)

    def verdicts(self) -> dict[str, list[str]]:
        """What was measured, by verdict."""
        found: dict[str, list[str]] = {}
        for name, difference in (*self.differences.items(), *self.tasks.items()):
            found.setdefault(difference.verdict, []).append(name)
        return {verdict: found[verdict] for verdict in ("worse", "better", "not separable") if verdict in found}


@dataclass(frozen=True)
class Model:
    """One model of a comparison. settings: how each measurement was taken, by its name."""

    name: str
    folder: str
    fingerprint: str
    measurements: dict[str, Estimate]
    settings: dict[str, dict[str, Any]]
    tasks: dict[str, Task]
    domains: tuple[Slice, ...]
    positions: tuple[Slice, ...]
    calibration: Calibration | None
    samples: tuple[tuple[str, str], ...]  # prompt, continuation
    record: Record | None
    against: Against | None = None
    parts: Mapping[str, int] = field(default_factory=dict)  # bytes by part of the model

    def measured(self, name: str) -> Estimate:
        return self.measurements.get(name, UNKNOWN)


@dataclass(frozen=True)
class Document:
    base: Model | None
    others: tuple[Model, ...]
    setting: dict[str, Any]
    notes: tuple[str, ...]
    made: dict[str, Any]

    @property
    def models(self) -> tuple[Model, ...]:
        """The base first."""
        return ((self.base,) if self.base else ()) + self.others


def document(root: Node) -> Document:
    """Raises `UsageError`, one line that names the field, for another format version or what is not of its type."""
    version = root.fields.get("format")
    if version != FORMAT:
        raise UsageError(
            f"{root.place} is no comparison of format {FORMAT} (it says {version!r:.40}); make it with trimtab compare --json"
        )
    base = root.node("base")
    others = tuple(_model(node) for node in root.nodes("others"))
    found = Document(_model(base) if base else None, others, root.plain("setting"), root.texts("notes"), root.plain("made"))
    if not found.models:
        raise UsageError(f"{root.place} holds no models; compare at least one")
    return found


def _model(node: Node) -> Model:
    against, receipt = node.node("against_base"), node.node("receipt")
    calibration = node.node("calibration")
    return Model(
        node.text("name") or "unnamed",
        node.text("folder"),
        node.text("fingerprint"),
        {m.text("name"): _measurement(m) for m in node.nodes("measurements")},
        {m.text("name"): m.plain("setting") for m in node.nodes("measurements")},
        {name: _task(task) for name, task in node.named("tasks")},
        tuple(Slice(part.text("domain"), _nats(part)) for part in node.nodes("domains")),
        tuple(_position(part) for part in node.nodes("positions")),
        _calibration(calibration, "tokens") if calibration else None,
        tuple((sample.text("prompt"), sample.text("text")) for sample in node.nodes("samples")),
        record(receipt) if receipt and receipt.fields else None,
        _against(against) if against else None,
    )


COUNTED = {  # what n counts, by measurement
    "perplexity": "tokens",
    "bits per byte": "bytes",
    "bits per weight, blocks": "weights",
    "bits per weight, all": "weights",
    "prefill speed": "tokens",
    "decode speed": "tokens",
    "file size": "files",
    "memory at rest": "storages",
}


def _measurement(node: Node) -> Estimate:
    value, name = node.number("value"), node.text("name")
    return estimate(value, node.number("stderr"), node.count("n"), node.text("unit"), COUNTED.get(name, ""))


def estimate(
    value: float, stderr: float, n: int, unit: str = "", of: str = "", least: float = -inf, most: float = inf
) -> Estimate:
    """From a standard error. The interval does not leave what the number can be, from `least` to `most`."""
    low, high = value - NORMAL * stderr, value + NORMAL * stderr
    return Estimate(value, max(low, least) if isfinite(low) else nan, min(high, most) if isfinite(high) else nan, n, unit, of)


def _nats(node: Node) -> Estimate:
    return estimate(node.number("nats"), node.number("stderr"), node.count("n"), "nats/token", "tokens")


def _position(node: Node) -> Slice:
    begin, end = node.count("from"), node.count("to")
    return Slice(f"{begin} to {end}", _nats(node), begin, end)


def _share(node: Node, key: str, stderr: str, of: str) -> Estimate:
    return estimate(node.number(key), node.number(stderr), node.count("n"), SHARE, of, 0.0, 1.0)


def _task(node: Node) -> Task:
    calibration = node.node("calibration")
    return Task(
        _share(node, "accuracy", "stderr", "items"),
        _share(node, "normalised", "normalised_stderr", "items"),
        estimate(node.number("bits_per_byte"), node.number("bits_per_byte_stderr"), node.count("n"), "bits/byte", "items"),
        _calibration(calibration, "items") if calibration else None,
    )


def _calibration(node: Node, of: str) -> Calibration:
    bins = (
        Bin(b.number("low"), b.number("high"), b.number("confidence"), b.number("accuracy"), b.count("n"))
        for b in node.nodes("bins")
    )
    return Calibration(_share(node, "error", "stderr", of), tuple(b for b in bins if b.n))


def _against(node: Node) -> Against:
    words = {"perplexity": "perplexity", "bits_per_byte": "bits per byte"}
    kl, same_top = node.part("kl"), node.part("same_top")
    return Against(
        {words[key]: _difference(part) for key in words if (part := node.node(key))},
        estimate(kl.number("value"), kl.number("stderr"), kl.count("n"), kl.text("unit"), "tokens", 0.0),
        _share(same_top, "value", "stderr", "tokens"),
        {name: _difference(task, SHARE, "items") for name, task in node.named("tasks")},
        {name: _difference(bits) for name, task in node.named("tasks") if (bits := task.node("bits_per_byte"))},
        {name: _flips(flips) for name, task in node.named("tasks") if (flips := task.node("flips"))},
    )


def _difference(node: Node, unit: str = "", of: str = "") -> Difference:
    verdict = node.text("verdict")
    if verdict not in VERDICTS:
        raise UsageError(f"{node.place}.verdict must be one of {', '.join(VERDICTS)}, got {verdict!r:.40}")
    found = Estimate(
        node.number("difference"), node.number("low"), node.number("high"), node.count("n"), unit or node.text("unit"), of
    )
    return Difference(found, verdict)


def _flips(node: Node) -> Flips:
    names = ("both_right", "right_to_wrong", "wrong_to_right", "both_wrong", "n")
    return Flips(*(node.count(name) for name in names))

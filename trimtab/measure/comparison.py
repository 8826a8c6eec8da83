"""The comparison document: what is said of each model, and of each against the base. Computed from what was gathered, no model.

All values are what JSON holds; a number that cannot be had (the spread of a single observation) is null.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor

from trimtab.core.report import Measurement
from trimtab.measure.agreement import Agreement, Predictions
from trimtab.measure.calibration import calibration
from trimtab.measure.flips import Flips
from trimtab.measure.items import Items
from trimtab.measure.paired import PairedDifference, paired_difference, paired_ratio
from trimtab.measure.perplexity import bits_per_byte, mean_over_windows, perplexity

FORMAT = 1
NATS, BITS, SHARE = "nats/token", "bits/byte", "fraction"


@dataclass(frozen=True)
class Evidence:
    """What was gathered of one model.

    predictions on `bytes` [windows] bytes of text, the windows of each of `texts` after one another. size: measurements.
    setting: how predictions were made. passages: nats and bytes [passages], where tokenizers differ; None elsewhere.
    receipt: of the model's folder.
    """

    name: str
    folder: str | None
    fingerprint: str
    texts: tuple[str, ...]
    predictions: Predictions
    bytes: Tensor
    setting: Mapping[str, Any]
    size: Sequence[Measurement]
    items: Mapping[str, Items]
    samples: Sequence[Mapping[str, str]]
    passages: tuple[Tensor, Tensor] | None = None
    receipt: Mapping[str, Any] | None = None


def model(found: Evidence) -> dict[str, Any]:
    """The part MODEL of the document."""
    seen = found.predictions
    on_text = perplexity(seen.losses, found.setting), bits_per_byte(seen.losses, found.bytes, found.setting)
    measured = [*on_text, *found.size]
    return {
        "name": found.name,
        "folder": found.folder,
        "fingerprint": found.fingerprint,
        "measurements": [{**asdict(m), "stderr": _known(m.stderr)} for m in measured],
        "tasks": {task: _task(items) for task, items in found.items.items()},
        "domains": [{"domain": text, **_loss(losses)} for text, losses in _by_text(found)],
        "positions": [{"from": start, "to": end, **_loss(losses)} for start, end, losses in _by_position(seen.losses)],
        "calibration": calibration(seen.confidence, seen.right).json(),
        "samples": [dict(sample) for sample in found.samples],
        "receipt": None if found.receipt is None else dict(found.receipt),
    }


def against(base: Evidence, other: Evidence, agreement: Agreement | None) -> dict[str, Any]:
    """The part AGAINST: differences are other - base. agreement: None where the tokenizers differ."""
    by_text = _unpaired_text(base, other) if agreement is None else _same_text(agreement, other.bytes)
    return {**by_text, "tasks": {task: _task_against(base.items[task], items) for task, items in other.items.items()}}


def _same_text(agreement: Agreement, sizes: Tensor) -> dict[str, Any]:
    losses, base = agreement.other.losses, agreement.base.losses
    return {
        "perplexity": _difference(_paired(losses, base), NATS),
        "bits_per_byte": _difference(paired_ratio(_bits(losses.sum(1)), _bits(base.sum(1)), sizes), BITS),
        "kl": _average(agreement.kl, NATS),
        "same_top": _average(agreement.same_top, SHARE),
    }


def _unpaired_text(base: Evidence, other: Evidence) -> dict[str, Any]:
    """Tokens of different tokenizers are different things; the bytes of the same passages are not."""
    assert base.passages is not None
    assert other.passages is not None
    (nats, _), (base_nats, sizes) = other.passages, base.passages
    found = paired_ratio(_bits(nats), _bits(base_nats), sizes)
    return {"perplexity": None, "bits_per_byte": _difference(found, BITS), "kl": None, "same_top": None}


def _paired(losses: Tensor, base: Tensor) -> PairedDifference:
    return paired_difference(losses.mean(1)[None], base.mean(1)[None])


def _task_against(base: Items, other: Items) -> dict[str, Any]:
    """A single gold answer is rarely said word for word, so its bits per byte are compared as well."""
    flips = Flips.of(base.right(), other.right())
    found = {**_difference(flips.difference(), SHARE, lower_is_better=False), "flips": flips.json()}
    if not other.single:
        return found
    bits = paired_ratio(_bits(-other.scores[:, 0]), _bits(-base.scores[:, 0]), other.sizes[:, 0])
    return {**found, "bits_per_byte": _difference(bits, BITS)}


def _difference(found: PairedDifference, unit: str, lower_is_better: bool = True) -> dict[str, Any]:
    verdict = found.verdict(lower_is_better)
    ends = {"low": _known(found.low), "high": _known(found.high)}
    return {"difference": found.difference, **ends, "n": found.n, "unit": unit, "verdict": verdict}


def _average(values: Tensor | None, unit: str) -> dict[str, Any] | None:
    """Of values [windows, tokens]; the standard error is over windows, n counts tokens."""
    if values is None:
        return None
    mean, stderr = mean_over_windows(values)
    return {"value": mean, "stderr": _known(stderr), "n": values.numel(), "unit": unit}


def _task(items: Items) -> dict[str, Any]:
    first, second = items.measurements()
    found = {"n": len(items), "accuracy": first.value, "stderr": _known(first.stderr)}
    if items.single:
        bits = {"bits_per_byte": second.value, "bits_per_byte_stderr": _known(second.stderr)}
        return {**found, "normalised": None, "normalised_stderr": None, **bits, "calibration": None}
    normalised = {"normalised": second.value, "normalised_stderr": _known(second.stderr)}
    return {**found, **normalised, "calibration": calibration(items.confidence(), items.right()).json()}


def _loss(losses: Tensor) -> dict[str, Any]:
    mean, stderr = mean_over_windows(losses)
    return {"n": losses.numel(), "nats": mean, "stderr": _known(stderr)}


def _by_text(found: Evidence) -> Iterator[tuple[str, Tensor]]:
    losses = found.predictions.losses
    return zip(found.texts, losses.split(len(losses) // len(found.texts)), strict=True)


def _by_position(losses: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """By how many tokens came before, in stretches that double: 1, 2 to 3, 4 to 7, ..."""
    tokens, start = losses.shape[1], 1
    while start <= tokens:
        end = min(2 * start - 1, tokens)
        yield start, end, losses[:, start - 1 : end]
        start = end + 1


def ranking(names: Sequence[str], losses: Sequence[Tensor]) -> str:
    """From the best to the worst perplexity on the same windows: `a < b ≈ c`; ≈ where neighbours are not separable."""
    order = sorted(range(len(names)), key=lambda number: float(losses[number].mean()))
    words = [names[order[0]]]
    for better, worse in pairwise(order):
        apart = _paired(losses[worse], losses[better]).verdict() == "worse"
        words += ["<" if apart else "≈", names[worse]]
    return " ".join(words)


def _bits(nats: Tensor) -> Tensor:
    return nats / math.log(2)


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None

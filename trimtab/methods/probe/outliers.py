"""Outliers: the few activations that are far larger than all others, and where they sit.

Of what leaves every block, |h|: the largest over the median ("max/median", and with the first token, where attention likes to
sink), the kurtosis of all entries (3 for a Gaussian), and the massive activations, those above `size` and above `times` the
median at once (Sun et al., 2024, arXiv:2402.17762: 100 and 1000; all tokens). "largest" says in its setting at which position and
channel of which window. "inputs" is the largest max/median among the inputs of the block's matrices without the first token:
what a quantizer of activations has to cope with.
"""

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import Finding, ProbeMethod, Subject
from trimtab.core.knobs import number
from trimtab.core.report import Measurement

TINY = 1e-12


@dataclass(frozen=True)
class Outliers(ProbeMethod):
    card: ClassVar = Card(
        id="outliers",
        title="Massive Activations in Large Language Models",
        paper="arXiv:2402.17762",
        fidelity="exact",
        beside=("quarot", "sensitivity"),
        claims=(
            Claim(
                "the-largest-sit-at-the-first-token",
                "outliers: max/median first too",
                ">",
                "outliers: max/median",
                metric="finding",
                published="at the starting token, and at few others, in LLaMA2, Mistral, Phi-2 and others",
            ),
            Claim(
                "there-are-massive-activations",
                "outliers: massive",
                ">",
                "0",
                metric="finding",
                published="in most blocks of LLaMA2, Mistral, Phi-2 and others, never many",
                note="above 100 and 1000 medians at once, per window",
            ),
        ),
    )

    size: float = number("a massive activation is larger than this", 100.0, 0.0)
    times: float = number("and larger than so many medians", 1000.0, 0.0)

    def measure(self, subject: Subject) -> list[Finding]:
        rows, largest = [], []
        for block in subject.blocks():
            rows.append([self._look(subject, block, window) for window in range(subject.windows)])
            largest.append(_largest(subject, block))
        length, width = subject.hidden(0, 0).shape
        entries = subject.windows * (length - 1) * width
        about = dict.fromkeys(("max/median", "max/median first too", "inputs"), ("ratio", entries))
        found = Finding.columns(rows, {**about, "kurtosis": ("", entries), "massive": ("per window", subject.windows)})
        inputs = found["inputs"]
        found["inputs"] = inputs.saying(f"activations are hardest to quantize in blocks {inputs.highest()}")
        return [*found.values(), Finding(tuple(largest), _places(largest))]

    def _look(self, subject: Subject, block: int, window: int) -> dict[str, float]:
        size = subject.hidden(block + 1, window).abs()
        massive = (size > self.size) & (size > self.times * size.median())
        seen = subject.inputs(block, window, subject.anatomy.block_sites(block))
        # Of an expert's tokens the first is not known, and all count.
        given = [(x if site.index is not None else x[1:]).abs() for site, x in seen.items()]
        return {
            "max/median": _peak(size[1:]),
            "max/median first too": _peak(size),
            "inputs": max((_peak(x) for x in given if x.numel()), default=0.0),
            "kurtosis": _kurtosis(subject.hidden(block + 1, window)[1:]),
            "massive": float(massive.sum()),
        }


def _peak(size: Tensor) -> float:
    return float(size.max()) / max(float(size.median()), TINY)


def _kurtosis(values: Tensor) -> float:
    """Fourth central moment over the squared variance; 0 for constants."""
    centred = values.double() - values.double().mean()
    variance = centred.square().mean()
    return float(centred.pow(4).mean() / variance.square()) if variance > 0 else 0.0


def _largest(subject: Subject, block: int) -> Measurement:
    """The largest |h| that leaves the block in any window, and where."""
    size = torch.stack([subject.hidden(block + 1, window).abs() for window in range(subject.windows)])
    window, position, channel = (int(i) for i in torch.unravel_index(size.argmax(), size.shape))
    place = {"block": block, "window": window, "position": position, "channel": channel}
    return Measurement("largest", float(size.max()), 0.0, size.numel(), "", place)


def _places(largest: list[Measurement]) -> str:
    channels = Counter(m.setting["channel"] for m in largest).most_common(2)
    first = sum(m.setting["position"] == 0 for m in largest)
    loudest = ", ".join(f"{channel} ({count} blocks)" for channel, count in channels)
    return f"the largest activations sit in channel {loudest}, at the first token in {first} of {len(largest)} blocks"

"""How a model answered a task, item by item: everything that is said about tasks afterwards is computed from this.

Accuracies of two models on the same items are paired observations. So what is kept is not a number but the log-likelihood
of every continuation; accuracy, normalised accuracy, calibration, flips and bits per byte are functions of it.

A task offers choices, of which the likeliest is the answer, or it has one gold continuation. With a single continuation
the item counts as right when greedy decoding would say exactly that continuation, token by token.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from trimtab.core.errors import DataError
from trimtab.core.report import Measurement

ABSENT = -math.inf  # the score of a choice that an item does not have


@dataclass(frozen=True)
class Items:
    """How one model answered one task.

    task: "arc_easy". ids: [items]. gold: [items] int64, index of the right choice; zeros where there is one continuation.
    scores: [items, choices] float64, log-likelihood in nats of each continuation; -inf where there is no such choice.
    sizes: [items, choices] int64, UTF-8 bytes of each continuation without leading white space; 0 where there is none.
    domains: [items], e.g. a subject; the task's name where there is none.
    greedy: [items, choices] bool, whether every token of the continuation is the likeliest one given what precedes it.
    truncated: how many (item, choice) pairs had their context cut on the left because it did not fit the model.
    setting: what was asked, for the reader of a result.
    """

    task: str
    ids: tuple[str, ...]
    gold: Tensor
    scores: Tensor
    sizes: Tensor
    domains: tuple[str, ...]
    greedy: Tensor
    truncated: int
    setting: Mapping[str, Any]

    def __post_init__(self) -> None:
        items = len(self.ids)
        alike = self.scores.shape == self.sizes.shape == self.greedy.shape
        if not alike or self.scores.ndim != 2 or not len(self.domains) == len(self.gold) == len(self.scores) == items:
            raise DataError(f"{self.task}: scores must be [items, choices] and every other part of the same length, {items}")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def single(self) -> bool:
        """Whether every item has one continuation, the gold answer, and nothing to choose from."""
        return self.scores.shape[1] == 1

    def right(self, normalised: bool = False) -> Tensor:
        """[items] bool: the likeliest choice (per byte, if normalised) is the gold one. Single: greedy decoding says it."""
        if self.single:
            return self.greedy[:, 0]
        return self._values(normalised).argmax(dim=1) == self.gold

    def confidence(self, normalised: bool = False) -> Tensor:
        """[items] float64: the softmax probability of the chosen one. Single: the probability of the gold answer."""
        if self.single:
            return self.scores[:, 0].exp()
        return self._values(normalised).softmax(dim=1).amax(dim=1)

    def bits_per_byte(self) -> Tensor:
        """[items] float64: bits of the gold continuation over its bytes."""
        nats, sizes = self._of_gold(self.scores), self._of_gold(self.sizes)
        return -nats / (math.log(2) * sizes)

    def measurements(self) -> list[Measurement]:
        """Accuracy, plain and normalised; of a single gold answer: exact match and bits per byte. n counts items."""
        if self.single:
            return [self._rate("exact match", self.right()), self._bits()]
        return [self._rate("accuracy", self.right()), self._rate("accuracy, normalised", self.right(normalised=True))]

    def kept(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """A JSON part and tensors, for `trimtab.measure.kept.Kept`."""
        plain = {
            "task": self.task,
            "ids": list(self.ids),
            "domains": list(self.domains),
            "truncated": self.truncated,
            "setting": dict(self.setting),
        }
        return plain, {"gold": self.gold, "scores": self.scores, "sizes": self.sizes, "greedy": self.greedy}

    @classmethod
    def from_kept(cls, plain: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "Items":
        """The inverse of `kept`."""
        return cls(
            task=plain["task"],
            ids=tuple(plain["ids"]),
            gold=tensors["gold"],
            scores=tensors["scores"],
            sizes=tensors["sizes"],
            domains=tuple(plain["domains"]),
            greedy=tensors["greedy"],
            truncated=plain["truncated"],
            setting=plain["setting"],
        )

    def _values(self, normalised: bool) -> Tensor:
        return self.scores / self.sizes.clamp_min(1) if normalised else self.scores

    def _of_gold(self, values: Tensor) -> Tensor:
        return values.gather(1, self.gold[:, None])[:, 0]

    def _rate(self, name: str, right: Tensor) -> Measurement:
        return self._mean(name, right.double(), "fraction of items")

    def _bits(self) -> Measurement:
        """A ratio of sums, so that a one-byte answer does not count as much as a sentence."""
        bits, sizes = -self._of_gold(self.scores) / math.log(2), self._of_gold(self.sizes).double()
        value = float(bits.sum() / sizes.sum())
        spread = _standard_error(bits - value * sizes) * len(self) / float(sizes.sum())
        return Measurement(f"{self.task} bits per byte", value, spread, len(self), "bits/byte", dict(self.setting))

    def _mean(self, name: str, values: Tensor, unit: str) -> Measurement:
        setting = dict(self.setting)
        return Measurement(f"{self.task} {name}", float(values.mean()), _standard_error(values), len(self), unit, setting)


def _standard_error(values: Tensor) -> float:
    return float(values.std() / math.sqrt(len(values))) if len(values) > 1 else math.nan

"""Every plug-in protocol on one page.

A method is a frozen dataclass of hyperparameters with a `Card`. It never touches a model: it is handed a weight, what was
seen, and a place, and it *proposes*. The engine wires, `engine/apply.py` disposes. A new kind is added here together with
its runner in `engine/run.py`, and nowhere else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, TypeVar, cast, runtime_checkable

import torch
from torch import Tensor

from trimtab.core.card import Card
from trimtab.core.errors import UsageError
from trimtab.core.knobs import checked, knobs
from trimtab.core.places import Coupling, Site, Unit

if TYPE_CHECKING:
    from trimtab.anatomy import Anatomy
    from trimtab.core.edits import Edits

T = TypeVar("T")
Layout = dict[str, tuple[tuple[int, ...], torch.dtype]]


@runtime_checkable
class LinearWeight(Protocol):
    """An immutable weight matrix: the currency between methods, kernels and files.

    `dense()` *defines* the format. Everything else must agree with it to the last bit.
    """

    kind: ClassVar[str]

    @property
    def shape(self) -> tuple[int, int]: ...  # [out, in]

    def dense(self) -> Tensor: ...  # [out, in] float32

    def tensors(self) -> dict[str, Tensor]: ...  # what is stored, by name

    def spec(self) -> dict[str, Any]: ...  # the JSON that, with tensors(), rebuilds the value

    @property
    def bits(self) -> float: ...  # stored bits per original weight: codes, scales, indices, codebooks

    @classmethod
    def layout(cls, spec: Mapping[str, Any]) -> Layout: ...  # shapes and dtypes of tensors(), from the spec alone

    @classmethod
    def build(cls, spec: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self: ...


class Statistic(Protocol):
    """A streaming mean over calibration tokens, in optax's manner: pure functions on a state.

    `on` says what is observed: "input" of a site, [tokens, in]; "block": a block's (input, output), each [tokens, width].
    """

    on: ClassVar[str]

    @staticmethod
    def start(shape: tuple[int, int], device: torch.device) -> Any: ...

    @staticmethod
    def update(state: Any, *seen: Tensor) -> Any: ...

    @staticmethod
    def merge(a: Any, b: Any) -> Any: ...

    @staticmethod
    def finish(state: Any) -> Tensor: ...


class Original:
    """Not a statistic but may be needed like one: the dense weight before the first of the adjacent linear steps, [out, in]."""


class Seen:
    """What a method asked for in `needs`, by type. Asking for anything else is an error that names the declaration.

    `generator` is the place's own randomness. `note(key, value)` writes into the step's receipt: damping raised,
    fallbacks taken.
    """

    def __init__(
        self,
        values: Mapping[type, Any],
        generator: torch.Generator | None = None,
        shared: dict[Any, Any] | None = None,
    ):
        self._values = dict(values)
        self._shared = {} if shared is None else shared
        self._generator = generator
        self.drew = False
        self.notes: dict[str, Any] = {}

    def __getitem__(self, need: type) -> Any:
        if need not in self._values:
            raise KeyError(f"{need.__name__} was not declared; add it to `needs` of the method")
        return self._values[need]

    @property
    def generator(self) -> torch.Generator:
        """The place's own randomness. That it was asked for is remembered: `drew`. Raises ValueError if none was handed in."""
        if self._generator is None:
            raise ValueError("no randomness was handed in; make Seen with a generator, e.g. Seeds(0).at(place)")
        self.drew = True
        return self._generator

    def note(self, key: str, value: Any) -> None:
        self.notes[key] = value

    def once(self, key: Any, make: Callable[[], T]) -> T:
        """`make()`, computed once for all matrices that share this input (a factorization of their common gram)."""
        if key not in self._shared:
            self._shared[key] = make()
        return cast(T, self._shared[key])


@dataclass(frozen=True)
class Method(ABC):
    """Marker: a frozen dataclass of hyperparameters made with `core.knobs`, plus a card. Values are checked when made."""

    card: ClassVar[Card]
    needs: ClassVar[tuple[type, ...]] = ()

    def __post_init__(self) -> None:
        for name, knob in knobs(self).items():
            object.__setattr__(self, name, checked(self.card.id, name, knob, getattr(self, name)))
        self.check()

    def check(self) -> None:  # noqa: B027 - most methods have nothing to add
        """Relations between several knobs; raises `UsageError`."""

    def knobs(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def __str__(self) -> str:
        changed = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        return f"{self.card.id}({', '.join(f'{k}={v!r}' for k, v in changed.items())})"


class LinearMethod(Method):
    """Replaces one weight matrix at a time, in forward order, each seeing the inputs that the model built so far gives."""

    takes: ClassVar[tuple[type[LinearWeight], ...]]
    gives: ClassVar[tuple[type[LinearWeight], ...]]
    carry: ClassVar[str] = "compressed"  # whose outputs the next block is shown: "compressed" | "original"

    def fits(self, site: Site) -> None:
        """Raises `UsageError` if the method cannot work on a matrix of this shape. Called before any weight moves."""

    def promises(self, site: Site, spec: Mapping[str, Any]) -> dict[str, Any] | None:
        """The spec of the container this method will give for a weight of this spec, or None where the data decide."""
        return None

    @abstractmethod
    def solve(self, weight: LinearWeight, seen: Seen, site: Site) -> LinearWeight: ...


class ChannelMethod(Method):
    """Scores coupled channels; the engine removes the lowest until the budget is met, model-wide.

    Declares the knob `sparsity` (fraction of the couplings' weights to remove). Statistics are of the consumer's input.
    """

    unit: ClassVar[tuple[Unit, ...]]
    sparsity: float

    @abstractmethod
    def score(self, coupling: Coupling, weight: LinearWeight, seen: Seen) -> Tensor:
        """[units] float64, larger = keep; comparable across all couplings of the model. `weight` is the consumer's."""


@runtime_checkable
class Repairs(Protocol):
    """A second capability of a channel method: mends the consumer for what was removed."""

    def repair(self, coupling: Coupling, weight: LinearWeight, keep: Tensor, seen: Seen) -> Tensor | None:
        """[out] to add to the consumer's bias, or None. keep: [units] bool, True = survives."""


class ModelMethod(Method):
    """Rewrites the model as a whole: rotations, foldings, dropped blocks."""

    preserves: ClassVar[bool] = False  # True promises unchanged float64 logits, and is tested
    unties: ClassVar[bool] = False  # True where a head that shares the embedding's matrix gets one of its own

    @abstractmethod
    def rewrite(self, anatomy: Anatomy, seen: Seen) -> Edits: ...


class Allocator(Method):
    """Chooses how strong another linear method is at each site: it sets that method's knob `knob`."""

    knob: ClassVar[str]

    @abstractmethod
    def allocate(self, sites: Sequence[Site], seen: Seen) -> dict[Site, Any]: ...


def method_field_error(owner: str, name: str, options: Sequence[str], hint: str) -> UsageError:
    """The one wording for an unknown hyperparameter."""
    return UsageError(f"{owner} has no field {name!r}{hint}; its fields are {', '.join(options) or 'none'}")

"""Every plug-in protocol on one page.

A method is a frozen dataclass of hyperparameters with a `Card`. It never touches a model: it is handed a weight, what was
seen, and a place, and it *proposes*. The engine wires, `engine/apply.py` disposes. A new kind is added here together with
its runner in `engine/run.py`, and nowhere else. Probes only look, so theirs is `engine/probe.py`. What is trained on data has
a page of its own, `core/trained.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, TypeVar, cast, runtime_checkable

import torch
from torch import Tensor, nn

from trimtab.core.card import Card
from trimtab.core.errors import UsageError
from trimtab.core.finding import Finding as Finding
from trimtab.core.knobs import checked, choice, flag, knobs, rate
from trimtab.core.places import Coupling, Fold, Site, Unit

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

    `on` says what is observed: "input" of a site, [tokens, in]; "pair": that and the same tokens' input in the untouched
    model, each [tokens, in]; "block": a block's (input, output), each [tokens, width]. "passage": an input of a site and the
    (input, output) of its block, each [windows, length, width], tokens in the same order; "attended": an input of a site and
    the attention that its tokens draw in the block, over all heads and queries, [windows, length]. "gradient": that of a site's
    weight, [out, in], one window at a time; channel methods only.
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


class Reference:
    """Not a statistic but may be needed like one, by scale methods: the matrices of another model by site, [out, in] each.

    Which model, says the method's knob `base` (`knobs.model`). With it comes `Original`, by site too: the model's own matrices.
    """


@dataclass(frozen=True)
class Storage:
    """Not a statistic but may be needed like one, by allocators: bytes in the weight files once the whole recipe is done.

    tensors(site, strength): of what the site is stored in, None where an earlier step decides that by data; header(site,
    strength): at most, of the lines that name these tensors. rest: at most, of everything else in the files, None where it
    is not known yet; before: of all tensors of the model before the first step. What is said of headers holds while all
    tensors together stay below `largest`. Both functions raise `UsageError` where nobody could tell.
    """

    tensors: Callable[[Site, Any], int | None]
    header: Callable[[Site, Any], int]
    rest: int | None
    before: int
    largest: int


Candidate = tuple[Any, ...]


class Trials(Protocol):
    """Not a statistic but may be needed like one, by `Searches`: what the model says with a candidate in it.

    A candidate has an entry for every place: for an allocator the sites, in order, and each entry is one of `strengths`; for
    a model method the blocks, and True leaves the block out. None is a place as it is.
    """

    @property
    def windows(self) -> int: ...  # of held-out text, numbered from 0

    def losses(self, candidates: Sequence[Candidate], windows: Sequence[int] | None = None) -> list[float]:
        """Mean KL(model as it is || with the candidate) over the tokens of some windows (None: all), nats per token.

        Infinite for one that could not be judged.
        """


@runtime_checkable
class Searches(Protocol):
    """A second capability of allocators and model methods that need `Trials`, with a knob `held_out` (how many tokens)."""

    @property
    def strengths(self) -> Sequence[Any]: ...  # what candidates may hold; every site is compressed once with each

    def trials(self, places: Sequence[Any], windows: int) -> tuple[int, int]: ...  # candidates judged, windows read; at most


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

    def showing(self, values: Mapping[type, Any]) -> Seen:
        """The same place and its randomness, but other things seen there."""
        return Seen(values, self._generator)

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


class Learner(nn.Module, ABC):
    """A matrix while it is learned: what its parameters make of it now.

    rates: the learning rate of every parameter, by name. progress: the fraction of the learning that is done, set from outside
    before every step and 1.0 at the end, for what hardens as it goes.
    """

    rates: Mapping[str, float]
    progress: float = 0.0

    @abstractmethod
    def matrix(self) -> Tensor:
        """[out, in] float32, through which gradients flow. At progress 1.0 it equals `result().dense()`."""

    @abstractmethod
    def result(self) -> LinearWeight: ...


class BlockMethod(LinearMethod):
    """A linear method whose matrices are learned, together: blocks shall answer as the untouched ones do.

    Declares the knob `epochs` (passes over the calibration set). `needs` holds nothing that has to be collected.
    """

    epochs: int

    def windows(self, depth: int) -> Sequence[range]:
        """The blocks that are learned together, one window after the other; neither starts nor ends ever fall."""
        return [range(block, block + 1) for block in range(depth)]

    @abstractmethod
    def begin(self, weight: LinearWeight, seen: Seen, site: Site) -> Learner: ...

    def solve(self, weight: LinearWeight, seen: Seen, site: Site) -> LinearWeight:
        """Where learning starts from, which is an answer too."""
        return self.begin(weight, seen, site).result()


Pools = Sequence[tuple[Sequence[Coupling], float]]


@dataclass(frozen=True)
class ChannelMethod(Method):
    """Scores coupled channels; the engine removes the lowest until the budget is met.

    The knobs are the engine's to read. Statistics of inputs are of the consumer's; `seen[Original]`, and statistics on
    gradients, are mappings by the coupling's matrices, [out, in] each. Who needs gradients declares the knob `windows`: how many
    windows of the calibration set it looks at, for whatever it needs.
    """

    unit: ClassVar[tuple[Unit, ...]] = (Unit.NEURON, Unit.KV_GROUP)

    sparsity: float = rate("fraction of the coupled weights removed, model-wide", 0.2, high=0.9)
    of: str = choice("what sparsity is a fraction of: the coupled weights, or the whole model", "coupled", ("coupled", "model"))
    units: str = choice("which units may go", "all", ("all", "neuron", "kv_group"))
    uniform: bool = flag("equal widths in all blocks, which the family's own config describes", False)

    @abstractmethod
    def score(self, coupling: Coupling, weight: LinearWeight, seen: Seen) -> Tensor:
        """[units] float64, larger = keep; comparable across the couplings of a pool. `weight` is the consumer's."""

    def pools(self, couplings: Sequence[Coupling], sparsity: float, seen: Seen) -> Pools:
        """Couplings whose units compete with each other, and the fraction of its weights that each such pool loses.

        Whole units seldom meet a fraction: what is then missing to `sparsity` of all goes from the pools of the smallest units.
        seen: statistics on blocks. With several rounds, both are fractions of what was there at first, for one round.
        """
        return [(couplings, sparsity)]

    def rounds(self) -> int:
        """In how many equal steps the budget is approached. Before each, the model as it is then is looked at anew."""
        return 1


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


class ScaleMethod(Method):
    """Chooses how loud each channel of a shared input is: columns are multiplied, their source is divided, the model stays.

    Shown the untouched model. `seen[statistic]` is a mapping by consumer; weights: of all consumers but routers, by site.
    """

    def fits(self, site: Site) -> None:
        """Raises `UsageError` if the method cannot work on a consumer of this shape. Called before any weight moves."""

    @abstractmethod
    def scale(self, fold: Fold, weights: Mapping[Site, LinearWeight], seen: Seen) -> Tensor | None:
        """[in] positive, what the consumers' columns are multiplied by; equal where `fold.pooled` says so. None: leave it."""


class Allocator(Method):
    """Chooses how strong another linear method is at each site: it sets that method's knob `knob`."""

    knob: ClassVar[str]

    def promises(self, sites: Sequence[Site], storage: Storage) -> int | None:
        """Bytes of tensors that the sites will take whatever is seen, or None where the data decide.

        Raises `UsageError` where what is asked for cannot be met. Called before any weight moves.
        """
        return None

    @abstractmethod
    def allocate(self, sites: Sequence[Site], seen: Seen) -> dict[Site, Any]: ...


class Subject(Protocol):
    """What a probe looks at: a model at rest, and what passed between its blocks while it read some windows of tokens.

    Hidden states are those of one window, [length, width], float32 (float64 for a float64 model). Nothing here changes the model.
    """

    @property
    def anatomy(self) -> Anatomy: ...

    @property
    def windows(self) -> int: ...  # numbered from 0

    @property
    def generator(self) -> torch.Generator: ...  # the probe's own randomness

    def blocks(self) -> Iterator[int]: ...  # 0 .. depth - 1; whoever watches is told where the loop is

    def hidden(self, block: int, window: int) -> Tensor: ...  # what enters the block; at block = depth, what leaves the last

    def inputs(self, block: int, window: int, sites: Sequence[Site]) -> dict[Site, Tensor]: ...  # what matrices are given

    def drive(self, block: int, window: int, hidden: Tensor, instead: Instead | None = None) -> Tensor:
        """What the block makes of other hidden states, `instead`: with other matrices [out, in] in place of its own.

        None instead of a matrix silences it: nothing comes out of it, not even its bias.
        """

    def onward(self, block: int, window: int, hidden: Tensor) -> Tensor: ...  # what leaves the last block if this enters one

    def head_input(self, hidden: Tensor) -> Tensor: ...  # some tokens of what leaves the last block -> what the head is given

    def logits(self, hidden: Tensor) -> Tensor: ...  # the same -> [tokens, vocabulary]


Instead = Mapping[Site, Tensor | None]


class ProbeMethod(Method):
    """Looks at a model and changes nothing: where it could be cut. The first finding has a measurement for every block."""

    @abstractmethod
    def measure(self, subject: Subject) -> list[Finding]: ...


def method_field_error(owner: str, name: str, options: Sequence[str], hint: str) -> UsageError:
    """The one wording for an unknown hyperparameter."""
    return UsageError(f"{owner} has no field {name!r}{hint}; its fields are {', '.join(options) or 'none'}")

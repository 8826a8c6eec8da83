"""What a run has done so far, as plain tensors and JSON, and how another process goes on from there.

A run is a sequence of phases (`run._phases`), and a phase of linear steps goes block by block. Between two blocks everything
that the rest depends on is: the matrices that were replaced, the masks that later steps have to know, the activations of the
streams, the strengths that allocators chose, and the record. The arguments of the blocks are not kept: they come from the
embedding alone, and recording them again costs next to nothing. Randomness needs no state, since every place has its own.

A step of another kind changes the model as a whole, so after it the model is kept as a whole. Where that would cost more than
doing the step again, it is done again: only if nothing but such steps came before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from trimtab import formats
from trimtab.anatomy import Anatomy
from trimtab.core.edits import SetParam, SetWeight
from trimtab.core.kinds import LinearMethod, LinearWeight
from trimtab.core.places import Site
from trimtab.core.report import Receipt
from trimtab.engine.apply import apply
from trimtab.engine.packed_linear import PackedLinear
from trimtab.engine.sweep import Stream
from trimtab.formats import Dense, Masked

if TYPE_CHECKING:
    from trimtab.engine.run import Bench

Part = tuple[dict[str, Tensor], dict[str, Any]]  # tensors by name, and JSON about them
WEIGHTS, STREAM, HELD = "weights.", "stream.", "held"  # names of parts
MASK = "held:"  # within a part of weights
BIAS = "bias:"  # the same: [1, out]
PIECE = 1 << 26  # bytes of activations in one part


class Keeper(Protocol):
    """Where a run's state goes. What was kept becomes the state only when it is committed, all of it in one step."""

    @property
    def record(self) -> Mapping[str, Any] | None: ...  # of the last commit of an earlier process; None: there is none

    def names(self) -> list[str]: ...  # of the parts that are kept

    def part(self, name: str) -> Part: ...

    def due(self) -> bool: ...  # whether it is time for a commit

    def keep(self, name: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None: ...

    def forget(self, prefix: str) -> None: ...  # the parts whose names begin so

    def place(self, name: str) -> Path | None: ...  # a folder for the state of a training; None: nothing is kept

    def whole(self, model: nn.Module) -> None: ...  # keep the model as it is; parts of it are forgotten by the caller

    def commit(self, record: Mapping[str, Any]) -> None: ...


class Unkept:
    """The keeper of runs that keep nothing."""

    record: Mapping[str, Any] | None = None

    def names(self) -> list[str]:
        return []

    def part(self, name: str) -> Part:
        raise KeyError(name)

    def due(self) -> bool:
        return False

    def keep(self, name: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        """Nothing."""

    def forget(self, prefix: str) -> None:
        """Nothing."""

    def place(self, name: str) -> Path | None:
        return None

    def whole(self, model: nn.Module) -> None:
        """Nothing."""

    def commit(self, record: Mapping[str, Any]) -> None:
        """Nothing."""


UNKEPT = Unkept()


@dataclass
class Place:
    """Where a run is. base: the phases that are in the model kept as a whole; phase: those that are done in all; blocks: of
    the phase at hand. strengths: chosen by allocators for it, by step and site name. changed: the matrices that no part
    holds yet, by name, in order."""

    base: int = 0
    phase: int = 0
    blocks: int = 0
    strengths: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    changed: dict[str, None] = field(default_factory=dict)


@dataclass(frozen=True)
class Begun:
    """A phase that an earlier process was in. strengths: by step and site name; keeper: has the activations."""

    blocks: int
    strengths: Mapping[int, Mapping[str, Any]]
    keeper: Keeper

    def take_up(self, streams: Sequence[Stream]) -> None:
        """Give the streams, which begin at the first block, the activations they had."""
        for name in [n for n in self.keeper.names() if n.startswith(STREAM)]:
            stream = streams[int(name.split(".")[1])]
            for batch, hidden in self.keeper.part(name)[0].items():
                stream.hidden[int(batch)] = hidden.to(stream.hidden[int(batch)].device)


def take_up(bench: Bench) -> int:
    """To be called first, with the model that was kept as a whole, or the untouched one. The phases that are in it."""
    record = bench.keeper.record
    if record is None:
        return 0
    bench.place = Place(record["base"], record["base"])
    if HELD in bench.keeper.names():
        bench.held = _masks(bench.keeper.part(HELD))
    return bench.place.base


def done_already(bench: Bench, number: int, linear: bool) -> bool:
    """Whether a phase's work need not be done again. Brings the model to where it was, if this is the phase it was in."""
    record = bench.keeper.record
    if record is None or number > record["phase"]:
        return False
    if number == record["phase"]:
        _recall(bench, record)
    return linear and number < record["phase"]


def _recall(bench: Bench, record: Mapping[str, Any]) -> None:
    anatomy = Anatomy.of(bench.model)
    names = bench.keeper.names()
    for name in sorted(n for n in names if n.startswith(WEIGHTS)):
        _put_back(bench, anatomy, bench.keeper.part(name))
    strengths = {int(step): chosen for step, chosen in record["strengths"].items()}
    bench.place = Place(record["base"], record["phase"], record["blocks"], strengths)
    bench.begun = Begun(record["blocks"], strengths, bench.keeper) if strengths or record["blocks"] else None
    bench.receipts[:] = [Receipt(**receipt) for receipt in record["receipts"]]
    bench.notes[:] = record["notes"]
    bench.drew = record["drew"]
    bench.profile.seconds.update(record["seconds"])


def strengths_chosen(bench: Bench, work: Mapping[int, Mapping[Site, LinearMethod]]) -> None:
    """A phase begins; what its allocators chose took a look at the whole model."""
    steps = {number: bench.recipe.steps[number - 1].by for number in work}
    bench.place.strengths = {
        number: {site.name: getattr(method, by.knob) for site, method in work[number].items()}
        for number, by in steps.items()
        if by is not None
    }
    if bench.place.strengths and bench.keeper.due():
        _commit(bench, [])


def block_done(
    bench: Bench, anatomy: Anatomy, block: int | None, sites: Iterable[Site], streams: Sequence[Stream], settled: bool = True
) -> bool:
    """A block went through all steps of the phase, and the streams are behind it. Returns whether that is kept now.

    block: None for what is outside of the blocks, which comes last; the phase's end is then its commit. settled: nothing is in
    the making that the streams do not show.
    """
    bench.place.changed.update((site.name, None) for site in sites if site.block == block)
    if block is None or not settled or not bench.keeper.due():
        return False
    bench.place.blocks = block + 1
    last = block + 1 == len(anatomy.blocks)
    _keep_changed(bench, anatomy)
    _commit(bench, [] if last else streams)
    return True


def pause(bench: Bench) -> None:
    """A step begins that keeps a state of its own while it lasts; what led there is kept first."""
    if bench.place.changed:
        _keep_changed(bench, Anatomy.of(bench.model))
    _commit(bench, [])


def phase_done(bench: Bench, number: int, linear: bool) -> None:
    """All of a phase is in the model."""
    place = bench.place
    place.phase, place.blocks, place.strengths = number + 1, 0, {}
    pieces = bool(place.changed) or any(n.startswith(WEIGHTS) for n in bench.keeper.names())
    if linear and bench.keeper.due():
        _keep_changed(bench, Anatomy.of(bench.model))
        _commit(bench, [])
    elif not linear and (pieces or bench.keeper.due()):
        _keep_whole(bench)
        _commit(bench, [])


def _keep_whole(bench: Bench) -> None:
    bench.keeper.whole(bench.model)
    bench.keeper.forget(WEIGHTS)
    bench.keeper.keep(HELD, *_parts(dict(bench.held)))
    bench.place.base, bench.place.changed = bench.place.phase, {}


def _keep_changed(bench: Bench, anatomy: Anatomy) -> None:
    changed = [anatomy.site(name) for name in bench.place.changed]
    number = sum(name.startswith(WEIGHTS) for name in bench.keeper.names())
    for more, (block, sites) in enumerate(groupby(changed, lambda site: site.block)):
        with bench.present(block):
            _keep_block(bench, anatomy, f"{WEIGHTS}{number + more:06d}", list(sites))
    for module in anatomy.model.modules() if bench.depot is None else ():
        if isinstance(module, PackedLinear):
            module.drop_cache()  # reading a weight keeps what was built from tensors that a shelf has put away
    bench.place.changed = {}


def _keep_block(bench: Bench, anatomy: Anatomy, part: str, sites: Sequence[Site]) -> None:
    now = {site.name: anatomy.weight(site) for site in sites}
    held = {f"{MASK}{site.name}": bench.held[site.name] for site in sites if site.name in bench.held}
    tensors, specs = _parts({**now, **held, **_biases(anatomy, sites)})
    bench.keeper.keep(part, tensors, {"block": sites[0].block, "specs": specs})


def _biases(anatomy: Anatomy, sites: Sequence[Site]) -> dict[str, LinearWeight]:
    """Of the matrices that have one of their own: a step may have made or changed it."""
    found = {site.name: anatomy.bias(site) for site in sites if site.index is None}
    return {f"{BIAS}{name}": Dense(bias[None]) for name, bias in found.items() if bias is not None}


def _commit(bench: Bench, streams: Sequence[Stream]) -> None:
    bench.keeper.forget(STREAM)
    for number, stream in enumerate(streams):
        size = max(1, PIECE // max(1, stream.hidden[0].nbytes))
        for first in range(0, len(stream.hidden), size):  # never all of them in memory: they may be on disk
            batches = range(first, min(first + size, len(stream.hidden)))
            bench.keeper.keep(f"{STREAM}{number}.{first}", {str(batch): stream.hidden[batch] for batch in batches}, {})
    place = bench.place
    bench.keeper.commit(
        {
            **{"base": place.base, "phase": place.phase, "blocks": place.blocks, "before": bench.before},
            "strengths": place.strengths,
            "receipts": [asdict(receipt) for receipt in bench.receipts],
            **{"notes": bench.notes, "drew": bench.drew, "seconds": dict(bench.profile.seconds)},
        }
    )


def _put_back(bench: Bench, anatomy: Anatomy, part: Part) -> None:
    """The matrices of a part into the model, as they were in it."""
    tensors, about = part
    weights = _weights((tensors, about["specs"]))
    masks = {name.removeprefix(MASK): w for name, w in weights.items() if name.startswith(MASK) and isinstance(w, Masked)}
    own = {name: weight for name, weight in weights.items() if not name.startswith((MASK, BIAS))}
    biases = {n.removeprefix(BIAS): w.weight[0] for n, w in weights.items() if n.startswith(BIAS) and isinstance(w, Dense)}
    with bench.at(about["block"]):
        # packed: it is what stood there, so nothing else may be made of it.
        apply(anatomy, [SetWeight(anatomy.site(name), weight) for name, weight in own.items()], packed=True)
        apply(anatomy, [SetParam(f"{anatomy.site(name).path}.bias", bias) for name, bias in biases.items()])
    for name in own:
        bench.held.pop(name, None)
    bench.held.update(masks)


def _masks(part: Part) -> dict[str, Masked]:
    return {name: weight for name, weight in _weights(part).items() if isinstance(weight, Masked)}


def _parts(weights: Mapping[str, LinearWeight]) -> Part:
    tensors = {f"{name}/{key}": t for name, weight in weights.items() for key, t in weight.tensors().items()}
    return tensors, {name: weight.spec() for name, weight in weights.items()}


def _weights(part: Part) -> dict[str, LinearWeight]:
    tensors, specs = part
    own: dict[str, dict[str, Tensor]] = {name: {} for name in specs}
    for key, tensor in tensors.items():
        name, _, inner = key.rpartition("/")
        own[name][inner] = tensor
    return {name: formats.build(spec, own[name]) for name, spec in specs.items()}

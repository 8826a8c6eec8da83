"""Which channels can only vanish together, asked by nudging.

Within a branch (queries, keys and values before the attention output; gate and up before down), an output row of a
producer is nudged, and the inputs of the consumer that move are its columns. Rows and columns that are linked, directly or
through others, are one unit: row i of gate and up with column i of down, or a whole group of heads around one key-value
head. Any layout that the branch's code unpacks comes out right: grouped queries, fused and interleaved projections,
experts.

Where a norm runs over the full width of the queries or keys, every head moves every other: the branch comes out as a
*single* unit, and a coupling of one unit cannot be narrowed. Matrices of role OTHER, keys and values taken over from
another block, and the residual stream itself take part in no coupling.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.anatomy.bench import Bench, Call
from trimtab.anatomy.probe import run
from trimtab.anatomy.sites import parent
from trimtab.core.errors import ModelError
from trimtab.core.places import Coupling, Member, Role, Site, Unit
from trimtab.core.seeds import Seeds

# A nudge may meet a unit that an activation holds at zero; with random numbers drawn anew, one in two meets it awake.
_ROUNDS = 40
_SHAPES: tuple[tuple[Unit, Role, tuple[tuple[Role, ...], ...]], ...] = (
    (Unit.KV_GROUP, Role.O, ((Role.QKV,), (Role.Q, Role.K, Role.V))),
    (Unit.NEURON, Role.DOWN, ((Role.GATE_UP,), (Role.GATE, Role.UP), (Role.UP,))),
)


@dataclass(frozen=True)
class _Branch:
    """Producers and the consumer under one parent module, for one expert if they are stacked."""

    owner: str
    unit: Unit
    producers: tuple[Site, ...]
    consumer: Site

    @property
    def name(self) -> str:
        index = self.consumer.index
        return f"{self.owner}.{self.unit.value}" if index is None else f"{self.owner}.{index}.{self.unit.value}"


def find_couplings(model: nn.Module, sites: Sequence[Site]) -> tuple[Coupling, ...]:
    """All couplings in forward order. Runs the model once, and asks every distinct kind of branch once.

    `ModelError` where the units of a branch are not all of one size.
    """
    branches = list(_branches(sites))
    kinds = [_kind(model, branch) for branch in branches]
    calls = _recorded(model, sites[0], {b.owner: kind for b, kind in zip(branches, kinds, strict=True)})
    known: dict[str, list[Tensor]] = {}
    found = []
    for branch, kind in zip(branches, kinds, strict=True):
        if kind not in known:
            known[kind] = _ask(model, branch, sites, calls.get(kind))
        members = [Member(site, "rows", rows) for site, rows in zip(branch.producers, known[kind], strict=False)]
        members.append(Member(branch.consumer, "columns", known[kind][-1]))
        found.append(Coupling(branch.name, branch.consumer.block or 0, branch.unit, tuple(members)))
    return tuple(found)


def _branches(sites: Sequence[Site]) -> Iterator[_Branch]:
    groups: dict[tuple[str, int | None], list[Site]] = {}
    for site in sites:
        if site.block is not None:
            groups.setdefault((parent(site.path), site.index), []).append(site)
    for (owner, _), group in groups.items():
        for unit, consumer, sets in _SHAPES:
            ends = [site for site in group if site.role is consumer]
            producers = _producers(group, sets)
            if len(ends) == 1 and producers:
                yield _Branch(owner, unit, producers, ends[0])


def _producers(group: Sequence[Site], sets: Sequence[tuple[Role, ...]]) -> tuple[Site, ...]:
    """The sites of the first set of roles that the group has exactly once each."""
    for roles in sets:
        found = tuple(site for site in group if site.role in roles)
        if sorted(site.role for site in found) == sorted(roles):
            return found
    return ()


def _kind(model: nn.Module, branch: _Branch) -> str:
    """Branches of the same kind run the same code on the same shapes, and so have the same units."""
    owner = model.get_submodule(branch.owner)
    plain = {k: v for k, v in vars(owner).items() if isinstance(v, int | float | str) and k != "layer_idx"}
    sites = [(s.path[len(branch.owner) :], s.shape) for s in (*branch.producers, branch.consumer)]
    return f"{type(owner).__qualname__} {plain} {sites} {owner}"


def _recorded(model: nn.Module, embed: Site, kinds: dict[str, str]) -> dict[str, Call]:
    """How the first module of every kind that is called at all is called when the model runs on a few tokens."""
    calls: dict[str, Call] = {}

    def note(kind: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.setdefault(kind, (args, kwargs))

    with ExitStack() as stack:
        for owner, kind in kinds.items():
            hook = model.get_submodule(owner).register_forward_pre_hook(partial(note, kind), with_kwargs=True)
            stack.callback(hook.remove)
        run(model, embed)
    return calls


def _ask(model: nn.Module, branch: _Branch, sites: Sequence[Site], call: Call | None) -> list[Tensor]:
    """[units, per_unit] indices for every producer, then for the consumer."""
    if call is None:
        raise ModelError(f"{branch.owner} was not called in a forward pass, so its channels cannot be told apart")
    generator = Seeds().at(branch.name)
    inside = {s: replace(s, path=s.path[len(branch.owner) + 1 :]) for s in sites if s.path.startswith(branch.owner + ".")}
    bench = Bench(model.get_submodule(branch.owner), list(inside.values()), call, generator)
    try:
        links = [_links(bench, inside[producer], inside[branch.consumer]) for producer in branch.producers]
    except RuntimeError as error:
        line = str(error).strip().split("\n")[0]
        raise ModelError(f"{branch.name}: {branch.owner} does not run on a widened batch: {line}") from error
    return _units(links, branch)


def _units(links: Sequence[tuple[Tensor, Tensor]], branch: _Branch) -> list[Tensor]:
    """[units, per_unit] for every producer, then for the consumer, from the (rows, columns) that each producer moves."""
    sizes = [branch.consumer.shape[1], *(producer.shape[0] for producer in branch.producers)]
    starts = torch.tensor(sizes).cumsum(0).tolist()
    edges = [torch.stack([rows + start, columns]) for start, (rows, columns) in zip(starts, links, strict=False)]
    label = _components(torch.cat(edges, 1), sum(sizes))
    if bool((label >= sizes[0]).any()):
        raise ModelError(f"{branch.name}: some outputs never reach {branch.consumer.name}, so its channels have no units")
    # Columns come first among the nodes, so the smallest node of a unit is its first column, and units are in its order.
    names, number = torch.unique(label, return_inverse=True)
    consumer, *producers = (_members(part, len(names), branch) for part in torch.split(number, sizes))
    return [*producers, consumer]


def _links(bench: Bench, producer: Site, consumer: Site) -> tuple[Tensor, Tensor]:
    """Rows of the producer and the columns that they move, as two lists of equal length."""
    waiting, rows, columns = torch.arange(producer.shape[0]), [], []
    for _ in range(_ROUNDS):
        silent = []
        for some in torch.split(waiting, bench.at_once(producer, consumer)):
            moved = bench.moved(producer, some, consumer)
            lane, column = moved.nonzero(as_tuple=True)
            rows.append(some[lane])
            columns.append(column)
            silent.append(some[~moved.any(1)])
        waiting = torch.cat(silent)
        if not len(waiting):
            break
    return torch.cat(rows), torch.cat(columns)


def _components(links: Tensor, nodes: int) -> Tensor:
    """[nodes] the smallest node that each node is connected with. links: [2, count]."""
    label = torch.arange(nodes)
    while True:
        least = label[links].amin(0)
        new = label.scatter_reduce(0, links[0], least, "amin").scatter_reduce(0, links[1], least, "amin")
        if torch.equal(new, label):
            return label
        label = new


def _members(unit: Tensor, count: int, branch: _Branch) -> Tensor:
    """[count, per_unit] the indices of each unit, ascending."""
    counts = torch.bincount(unit, minlength=count)
    if bool((counts != counts[0]).any()):
        raise ModelError(f"{branch.name}: its units are of unequal size, so it cannot be narrowed")
    return unit.argsort(stable=True).reshape(count, -1)

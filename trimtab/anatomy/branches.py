"""The branches of a block, and one question for each kind of them.

A branch is one module's matrices before its consumer: queries, keys and values before the attention output, gate and up before
down. What its code does between them is asked on a `Bench`; branches that run the same code on the same shapes give the
same answer, so every kind is asked once.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from torch import nn

from trimtab.anatomy.bench import Bench, Call
from trimtab.anatomy.probe import run
from trimtab.anatomy.sites import parent
from trimtab.core.errors import ModelError
from trimtab.core.places import Role, Site, Unit
from trimtab.core.seeds import Seeds

T = TypeVar("T")
_SHAPES: tuple[tuple[Unit, Role, tuple[tuple[Role, ...], ...]], ...] = (
    (Unit.KV_GROUP, Role.O, ((Role.QKV,), (Role.Q, Role.K, Role.V))),
    (Unit.NEURON, Role.DOWN, ((Role.GATE_UP,), (Role.GATE, Role.UP), (Role.UP,))),
)


@dataclass(frozen=True)
class Branch:
    """Producers and the consumer under one parent module, for one expert if they are stacked."""

    owner: str
    unit: Unit
    producers: tuple[Site, ...]
    consumer: Site

    @property
    def name(self) -> str:
        index = self.consumer.index
        return f"{self.owner}.{self.unit.value}" if index is None else f"{self.owner}.{index}.{self.unit.value}"


@dataclass(frozen=True, eq=False)
class Question:
    """A branch on its bench. producers, consumer: with their paths relative to the branch's owner, as the bench knows them."""

    branch: Branch
    bench: Bench
    producers: tuple[Site, ...]
    consumer: Site


def answered(model: nn.Module, sites: Sequence[Site], answer: Callable[[Question], T]) -> list[tuple[Branch, T]]:
    """Every branch in forward order with the answer for its kind. Runs the model once.

    `ModelError` for a branch that is not called, or whose code does not run on a widened batch.
    """
    branches = list(_branches(sites))
    kinds = [_kind(model, branch) for branch in branches]
    calls = _recorded(model, sites[0], {b.owner: kind for b, kind in zip(branches, kinds, strict=True)})
    known: dict[str, T] = {}
    for branch, kind in zip(branches, kinds, strict=True):
        if kind not in known:
            known[kind] = _ask(model, branch, sites, calls.get(kind), answer)
    return [(branch, known[kind]) for branch, kind in zip(branches, kinds, strict=True)]


def _branches(sites: Sequence[Site]) -> Iterator[Branch]:
    groups: dict[tuple[str, int | None], list[Site]] = {}
    for site in sites:
        if site.block is not None:
            groups.setdefault((parent(site.path), site.index), []).append(site)
    for (owner, _), group in groups.items():
        for unit, consumer, sets in _SHAPES:
            ends = [site for site in group if site.role is consumer]
            producers = _producers(group, sets)
            if len(ends) == 1 and producers:
                yield Branch(owner, unit, producers, ends[0])


def _producers(group: Sequence[Site], sets: Sequence[tuple[Role, ...]]) -> tuple[Site, ...]:
    """The sites of the first set of roles that the group has exactly once each."""
    for roles in sets:
        found = tuple(site for site in group if site.role in roles)
        if sorted(site.role for site in found) == sorted(roles):
            return found
    return ()


def _kind(model: nn.Module, branch: Branch) -> str:
    """Branches of the same kind run the same code on the same shapes."""
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


def _ask(model: nn.Module, branch: Branch, sites: Sequence[Site], call: Call | None, answer: Callable[[Question], T]) -> T:
    if call is None:
        raise ModelError(f"{branch.owner} was not called in a forward pass, so its channels cannot be told apart")
    inside = {s: replace(s, path=s.path[len(branch.owner) + 1 :]) for s in sites if s.path.startswith(branch.owner + ".")}
    bench = Bench(model.get_submodule(branch.owner), list(inside.values()), call, Seeds().at(branch.name))
    try:
        return answer(Question(branch, bench, tuple(inside[p] for p in branch.producers), inside[branch.consumer]))
    except RuntimeError as error:
        line = str(error).strip().split("\n")[0]
        raise ModelError(f"{branch.name}: {branch.owner} does not run on a widened batch: {line}") from error

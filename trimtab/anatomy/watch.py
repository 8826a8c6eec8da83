"""Watching chosen matrices: one call per input tensor, however many matrices share it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Self

from torch import Tensor, nn

from trimtab.anatomy.probe import looking
from trimtab.anatomy.sites import parent
from trimtab.core.errors import UsageError
from trimtab.core.places import Role, Site

if TYPE_CHECKING:
    from trimtab.anatomy.anatomy import Anatomy

See = Callable[[tuple[Site, ...], Tensor], None]


class Watch:
    """`with Watch(anatomy, sites, see): forward()` calls `see(group, x)` for each group of sites that share an input.

    x [tokens, in] is the input, detached, without a copy, in the model's own dtype and on its device: take from it what is
    needed and do not change it. Groups are the watched part of a stage; only experts in a stack are each a group of their
    own, seen with exactly the tokens that were routed there, and not seen at all where there were none.

    With `stop`, the forward pass is cut off as soon as everything watched was seen, and the `with` block ends there
    without an error: run one forward pass per `with`, and do not use its output. A Watch can be entered again.
    """

    def __init__(self, anatomy: Anatomy, sites: Sequence[Site], see: See, *, stop: bool = False):
        if any(site.role is Role.EMBED for site in sites):
            raise UsageError("an embedding is given token ids, which are not activations; watch other sites")
        self._model = anatomy.model
        self._see = see
        self._stop = _Stop() if stop else None
        self._groups = {group[0]: group for group in _groups(anatomy, sites)}
        self._left: set[str] = set()
        self._open = ExitStack()

    def __enter__(self) -> Self:
        self._left = {_done_with(site) for site in self._groups}
        with ExitStack() as stack:
            stack.enter_context(looking(self._model, list(self._groups), self._look))
            for owner in {_done_with(site) for site in self._groups if site.index is not None}:
                handle = self._model.get_submodule(owner).register_forward_hook(self._after(owner))
                stack.callback(handle.remove)
            self._open = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> bool:
        self._open.close()
        if error is None or error is not self._stop:
            return False
        error.__traceback__ = None  # it leads to the frames of the cut pass, which hold their activations
        return True

    def _look(self, site: Site, x: Tensor) -> None:
        self._see(self._groups[site], x.detach().reshape(-1, x.shape[-1]))
        if site.index is None:
            self._finish(site.path)

    def _after(self, owner: str) -> Callable[[nn.Module, object, object], None]:
        return lambda module, args, output: self._finish(owner)

    def _finish(self, path: str) -> None:
        self._left.discard(path)
        if self._stop is not None and not self._left:
            raise self._stop


class _Stop(Exception):
    """Ends a forward pass of which enough was seen."""


def _groups(anatomy: Anatomy, sites: Sequence[Site]) -> list[tuple[Site, ...]]:
    """The watched sites by shared input, in forward order within a group."""
    wanted = set(sites)
    groups: list[tuple[Site, ...]] = [(site,) for site in sites if site.block is None or site.index is not None]
    for block in sorted({site.block for site in sites if site.block is not None}):
        for stage in anatomy.stages(block):
            group = tuple(site for site in stage if site in wanted and site.index is None)
            if group:
                groups.append(group)
    return groups


def _done_with(site: Site) -> str:
    """The module at whose forward the site has been seen: its own, or for an expert the module that loops over experts."""
    return site.path if site.index is None else parent(site.path)

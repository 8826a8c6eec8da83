"""One forward pass on a few tokens tells which matrices are used, in which order, and which of them share an input.

Matrices share an input if they are given the same numbers in memory; no tracing, no knowledge of the family. A stack of
experts is one stage of its own: its experts are given different tokens. That an expert's tokens are rows of what a norm
put out is found by comparing the rows.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor, nn

from trimtab.anatomy.norms import Norm, describe, is_norm
from trimtab.anatomy.probe import PROBE_LENGTH, looking, run
from trimtab.anatomy.sites import is_linear
from trimtab.core.errors import ModelError
from trimtab.core.places import Role, Site

Stage = tuple[Site, ...]
Identity = tuple[int, ...]


@dataclass(frozen=True)
class Survey:
    """What one forward pass showed. stages: for every block, its stages in forward order."""

    sites: tuple[Site, ...]
    stages: tuple[tuple[Stage, ...], ...]
    norms: tuple[Norm, ...]


@dataclass
class _Notes:
    """What is written down during the pass, by path. Tensors are kept, so that their memory is not used again."""

    inputs: dict[str, Identity] = field(default_factory=dict)
    norm_of: dict[str, str] = field(default_factory=dict)
    norm_outputs: dict[str, Tensor] = field(default_factory=dict)
    kept: list[Tensor] = field(default_factory=list)

    def look(self, site: Site, x: Tensor) -> None:
        fits = isinstance(x, Tensor) and (site.role is Role.EMBED or x.shape[-1] == site.shape[1])
        if site.path in self.inputs or not fits:
            return
        self.kept.append(x)
        self.inputs[site.path] = _identity(x)
        source = self._norm_by_rows(x) if site.index is not None else self._norm_by_memory(x)
        if source is not None:
            self.norm_of[site.path] = source

    def _norm_by_memory(self, x: Tensor) -> str | None:
        return next((path for path, y in self.norm_outputs.items() if _identity(y) == _identity(x)), None)

    def _norm_by_rows(self, x: Tensor) -> str | None:
        return next((path for path, y in reversed(self.norm_outputs.items()) if _are_rows(x, y)), None)


def survey(model: nn.Module, found: Sequence[Site], blocks: str) -> Survey:
    """Runs the model once. `ModelError` if it does not run, or if its head or embedding is not used."""
    notes = _Notes()
    embed, head = found[0], found[-1]
    with looking(model, found, notes.look), _norms_noted(model, notes):
        try:
            run(model, embed)
        except Exception as error:
            line = str(error).strip().split("\n")[0]
            raise ModelError(f"{type(model).__name__} does not run on {PROBE_LENGTH} tokens: {line}") from error
    for site in (embed, head):
        if site.path not in notes.inputs:
            raise ModelError(f"{type(model).__name__} does not use its {site.role} matrix {site.path}")
    depth = len(model.get_submodule(blocks))  # type: ignore[arg-type]
    order = {path: place for place, path in enumerate(notes.inputs)}
    used = sorted((s for s in found if _takes_part(model, s, order)), key=lambda s: order.get(s.path, len(order)))
    outside = [site for site in used if site.block is None and site not in (embed, head)]
    inside = [[site for site in used if site.block == block] for block in range(depth)]
    return Survey(
        (embed, *outside, *(site for block in inside for site in block), head),
        tuple(tuple(_stages(block, notes)) for block in inside),
        tuple(_norms(model, used, notes)),
    )


def _takes_part(model: nn.Module, site: Site, order: dict[str, int]) -> bool:
    """Used in the pass; or a plain linear layer of a block (an expert of its own that no token has reached)."""
    if site.path in order:
        return True
    return site.block is not None and site.index is None and is_linear(model.get_submodule(site.path))


def _stages(block: Sequence[Site], notes: _Notes) -> Iterator[Stage]:
    groups: dict[object, list[Site]] = {}
    for site in block:
        alone = site.index is not None or site.path not in notes.inputs
        groups.setdefault(site.path if alone else notes.inputs[site.path], []).append(site)
    yield from map(tuple, groups.values())


def _norms(model: nn.Module, used: Sequence[Site], notes: _Notes) -> Iterator[Norm]:
    for path in notes.norm_outputs:
        feeds = tuple(site for site in used if notes.norm_of.get(site.path) == path)
        if feeds:
            yield describe(path, model.get_submodule(path), feeds)


@contextmanager
def _norms_noted(model: nn.Module, notes: _Notes) -> Iterator[None]:
    def hook(path: str):  # type: ignore[no-untyped-def]
        def note(module: nn.Module, args: object, output: object) -> None:
            if isinstance(output, Tensor):
                notes.norm_outputs[path] = output

        return note

    handles = [m.register_forward_hook(hook(path)) for path, m in model.named_modules() if is_norm(m)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _identity(x: Tensor) -> Identity:
    """The same for two views of the same numbers; the version differs once they were changed in place."""
    return (x.untyped_storage()._cdata, int(x.storage_offset()), x.numel(), x.shape[-1], x._version)


def _are_rows(x: Tensor, y: Tensor) -> bool:
    """Is every row of x [.., in] a row of y [.., in]?"""
    if x.shape[-1] != y.shape[-1]:
        return False
    rows, table = x.flatten(0, -2), y.flatten(0, -2)
    return bool((rows[:, None] == table[None]).all(-1).any(1).all())

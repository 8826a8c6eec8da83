"""The one description of a model that everything else works from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import cast

from torch import Tensor, nn

from trimtab.anatomy.blocks import blocks_path
from trimtab.anatomy.couplings import find_couplings
from trimtab.anatomy.folds import find_folds
from trimtab.anatomy.gains import stream_gains
from trimtab.anatomy.norms import Norm
from trimtab.anatomy.patterns import matching
from trimtab.anatomy.sites import candidates, is_tied, parent, stack_of
from trimtab.anatomy.survey import Stage, Survey, survey
from trimtab.core.errors import UsageError, did_you_mean
from trimtab.core.kinds import LinearWeight
from trimtab.core.places import Coupling, Fold, Site
from trimtab.formats.dense import Dense


@dataclass(frozen=True, eq=False)
class Anatomy:
    """Where things are in `model`, as it is now: after an edit that changes shapes or blocks, make a new one.

    sites: every weight matrix in forward order; the first is the embedding, the last the head (also where they are one
    tensor, `tied`). Weights are read from the live model whenever they are asked for.
    """

    model: nn.Module
    blocks_path: str
    sites: tuple[Site, ...]
    tied: bool
    _survey: Survey = field(repr=False)

    @classmethod
    def of(cls, model: nn.Module) -> Anatomy:
        """Reads a causal language model, running it once on a few tokens. `ModelError` if it cannot be read."""
        path = blocks_path(model)
        seen = survey(model, candidates(model, path), path)
        return cls(model, path, seen.sites, is_tied(model), seen)

    @property
    def blocks(self) -> nn.ModuleList:
        return cast(nn.ModuleList, self.model.get_submodule(self.blocks_path))

    def stages(self, block: int) -> tuple[Stage, ...]:
        """The block's matrices by shared input, in forward order: ({q, k, v}, {o}, {gate, up}, {down}).

        All experts in one stack make up one stage, although each of them is given tokens of its own.
        """
        return self._survey.stages[block]

    def block_sites(self, block: int) -> tuple[Site, ...]:
        """The block's matrices in forward order."""
        return tuple(site for site in self.sites if site.block == block)

    def norms(self) -> tuple[Norm, ...]:
        """The normalisation layers whose output is the input of matrices, in forward order; the final one feeds the head."""
        return self._survey.norms

    def couplings(self) -> tuple[Coupling, ...]:
        """Channels that can only vanish together, block by block; found at the first call, kept from then on."""
        return self._couplings

    def folds(self) -> tuple[Fold, ...]:
        """Where a scale can move from a norm or a matrix into the matrices behind it, inside the blocks, in forward order."""
        return self._folds

    def gains(self, who: str) -> dict[Site, Tensor]:
        """[width] float64, the gain on the input of every matrix that reads the residual stream.

        `ModelError` in the name of `who`, if the stream of this model cannot be turned.
        """
        return stream_gains(self, who)

    @cached_property
    def _folds(self) -> tuple[Fold, ...]:
        return find_folds(self)

    @cached_property
    def _couplings(self) -> tuple[Coupling, ...]:
        return find_couplings(self.model, self.sites)

    @cached_property
    def _by_name(self) -> dict[str, Site]:
        return {site.name: site for site in self.sites}

    def site(self, name: str) -> Site:
        """The site of exactly this name. `UsageError` with the nearest name otherwise."""
        if name not in self._by_name:
            raise UsageError(f"there is no matrix {name!r}{did_you_mean(name, self._by_name)}")
        return self._by_name[name]

    def match(self, pattern: str) -> tuple[Site, ...]:
        """The sites whose names fit a pattern (see `matching`). `UsageError` if there are none."""
        return tuple(self._by_name[name] for name in matching(pattern, self._by_name))

    def module(self, site: Site) -> nn.Module:
        """The module that holds the matrix; for an expert the module that holds the stack."""
        return self.model.get_submodule(site.path if site.index is None else parent(site.path))

    def weight(self, site: Site) -> LinearWeight:
        """What is there now: the compressed weight as it is, or the live parameter itself as `Dense` (a copy if transposed)."""
        if site.index is not None:
            stack = stack_of(self.model, site)
            if hasattr(stack, "weight_values"):
                return cast(Sequence[LinearWeight], stack.weight_values)[site.index]
            matrix = cast(Tensor, stack)[site.index]
        else:
            module = self.module(site)
            if hasattr(module, "weight_value"):
                return cast(LinearWeight, module.weight_value)
            matrix = cast(Tensor, module.weight)
        return Dense((matrix.T if site.transposed else matrix).detach())

    def bias(self, site: Site) -> Tensor | None:
        """[out], a view of the live bias, or None."""
        owner = self.module(site)
        if site.index is None:
            bias = getattr(owner, "bias", None)
        else:
            stacked = getattr(owner, site.path.rpartition(".")[2] + "_bias", None)
            bias = None if stacked is None else stacked[site.index]
        return None if bias is None else bias.detach()

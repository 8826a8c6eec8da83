"""The gain that every reader of the residual stream finds on its input, for rewrites that turn the stream.

An RMS norm without a gain commutes with a rotation of what it is given. So its gain has to go into the matrices behind it,
and where that cannot be done, because something else reads or writes the stream, there is no rotation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from trimtab.anatomy.norms import Norm
from trimtab.core.errors import ModelError
from trimtab.core.places import Role, Site

if TYPE_CHECKING:
    from trimtab.anatomy.anatomy import Anatomy

WRITERS = (Role.O, Role.DOWN)


def stream_gains(anatomy: Anatomy, who: str) -> dict[Site, Tensor]:
    """[width] float64 by reader. Raises `ModelError` in the name of `who` where a gain cannot be folded in."""
    for site in anatomy.sites:
        if site.index is not None and anatomy.bias(site) is not None:
            raise ModelError(f"{who}: {site.name} is an expert with a bias; the biases of experts cannot be rotated yet")
    gains = {site: _gain(anatomy, norm, who) for norm in anatomy.norms() for site in norm.feeds}
    routers = {s.block: gains[s] for s in gains if s.role is Role.ROUTER}
    for site in anatomy.sites:
        if site.index is not None and site.role not in WRITERS and site.block in routers:
            gains[site] = routers[site.block]  # experts read what their router reads
        if site not in gains and site.role not in (*WRITERS, Role.EMBED):
            raise ModelError(f"{who}: {site.name} reads the residual stream through no norm, so no rotation can be folded in")
    fed, width = {n.path for n in anatomy.norms()}, anatomy.sites[0].shape[1]
    for path, module in anatomy.model.named_modules():
        gain = getattr(module, "weight", None)
        if path not in fed and isinstance(gain, Tensor) and gain.shape == (width,):
            raise ModelError(f"{who}: the norm {path} acts behind a matrix; its gain does not commute with a rotation")
    return gains


def _gain(anatomy: Anatomy, norm: Norm, who: str) -> Tensor:
    if norm.centred:
        raise ModelError(f"{who}: {norm.path} subtracts the mean, which does not commute with a rotation")
    return anatomy.model.get_parameter(f"{norm.path}.weight").detach().double() + norm.offset

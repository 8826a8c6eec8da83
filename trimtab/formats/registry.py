"""From a spec back to a weight, whatever its kind.

Kinds of this room are in `FORMATS`; a third party adds its own through the entry point group `trimtab.formats`
(`mine = "package.module:Mine"`, with `Mine.kind == "mine"`), which is imported when a spec first asks for it.
`FORMATS` is filled by the package: formats that contain others need this page, so it cannot import them.
"""

from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from torch import Tensor

from trimtab.core.errors import ModelError, TrimtabError, did_you_mean
from trimtab.core.kinds import Layout, LinearWeight
from trimtab.formats.checks import shown

GROUP = "trimtab.formats"
FORMATS: dict[str, type[LinearWeight]] = {}
DEEPEST = 8
MOST_PARTS = 64


def layout(spec: Mapping[str, Any]) -> Layout:
    """Shapes and dtypes of the tensors that a spec needs. Raises `ModelError`; allocates nothing."""
    return _format(spec).layout(spec)


def build(spec: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> LinearWeight:
    """The weight that `spec()` and `tensors()` were taken from. Raises `ModelError` where they do not fit."""
    return _format(spec).build(spec, tensors)


def _format(spec: Mapping[str, Any]) -> type[LinearWeight]:
    if not isinstance(spec, Mapping):
        raise ModelError(f"the spec of a weight must be a mapping, got {shown(spec)}")
    check_depth(spec)
    kind = spec.get("kind")
    if not isinstance(kind, str):
        raise ModelError(f"the spec of a weight must name its kind, got {shown(kind)}")
    return FORMATS.get(kind) or _foreign(kind)


def check_depth(spec: Mapping[str, Any]) -> None:
    """At most `DEEPEST` levels of at most `MOST_PARTS` parts. Raises `ModelError`."""
    # Level by level and not by recursion, which a deep spec would exhaust.
    level = [spec]
    for _ in range(DEEPEST):
        level = [p for s in level for p in _parts(s) if isinstance(p, Mapping)]
        if not level:
            return
    raise ModelError(f"the spec of a weight is nested deeper than {DEEPEST} levels")


def _parts(spec: Mapping[str, Any]) -> list[Any]:
    parts = spec.get("parts")
    if not isinstance(parts, list):
        return []
    if len(parts) > MOST_PARTS:
        raise ModelError(f"the spec of a weight has {len(parts)} parts; at most {MOST_PARTS}")
    return parts


@cache
def _foreign(kind: str) -> type[LinearWeight]:
    points = list(entry_points(group=GROUP, name=kind))
    if not points:
        known = {*FORMATS, *entry_points(group=GROUP).names}
        raise ModelError(f"there is no format {shown(kind)}{did_you_mean(kind[:40], known)}")
    if len(points) > 1:
        raise TrimtabError(f"two packages offer the format {kind!r}: {', '.join(p.value for p in points)}")
    found: type[LinearWeight] = points[0].load()
    if getattr(found, "kind", None) != kind:
        raise TrimtabError(f"{points[0].value}: its kind is {getattr(found, 'kind', None)!r}, registered as {kind!r}")
    return found

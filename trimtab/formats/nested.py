"""How a weight made of weights is stored: part i's tensors under the prefix `i_`, its spec at `parts[i]`."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from trimtab.core.errors import ModelError, UsageError
from trimtab.core.kinds import Layout, LinearWeight
from trimtab.formats import checks, registry


def tensors(parts: Sequence[LinearWeight]) -> dict[str, Tensor]:
    """All parts' tensors, prefixed."""
    return {f"{i}_{name}": t for i, part in enumerate(parts) for name, t in part.tensors().items()}


def layout(kind: str, stored: Any, most: int = registry.MOST_PARTS) -> tuple[Layout, list[tuple[int, int]]]:
    """Of all parts together, and the shape of each. stored: what a spec says, 1 to `most` specs. Raises `ModelError`."""
    if not isinstance(stored, list | tuple) or not 1 <= len(stored) <= most:
        count = "one spec" if most == 1 else f"1 to {most} specs"
        raise ModelError(f"{kind}: parts must be a list of {count}, got {checks.shown(stored)}")
    whole = {f"{i}_{name}": entry for i, spec in enumerate(stored) for name, entry in registry.layout(spec).items()}
    return whole, [checks.shape(spec, kind) for spec in stored]


def build(stored: Sequence[Mapping[str, Any]], tensors: Mapping[str, Tensor]) -> tuple[LinearWeight, ...]:
    """The parts, each from the tensors under its prefix."""
    return tuple(registry.build(spec, _under(f"{i}_", tensors)) for i, spec in enumerate(stored))


def specs(parts: Sequence[LinearWeight]) -> list[dict[str, Any]]:
    """`parts` of a spec. What could be written but not read again is refused: raises `ModelError`."""
    made = [part.spec() for part in parts]
    registry.check_depth({"parts": made})
    return made


def check_count(kind: str, parts: Sequence[LinearWeight]) -> None:
    """For constructors. Raises `UsageError`."""
    if not 1 <= len(parts) <= registry.MOST_PARTS:
        raise UsageError(f"{kind} has 1 to {registry.MOST_PARTS} parts, got {len(parts)}")


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

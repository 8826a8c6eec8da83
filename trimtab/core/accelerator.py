"""A described accelerator: what a planner has to know of it, from a JSON file. Nothing here is measured."""

import json
from dataclasses import dataclass, fields
from math import isfinite
from pathlib import Path
from typing import Any

from trimtab.core.errors import UsageError, did_you_mean


@dataclass(frozen=True)
class Accelerator:
    """Chains of multipliers beside a large memory. All numbers are of one device, and of its whole.

    chains x lanes multiplications of 8-bit numbers end in a cycle; the lanes of a chain work on one group of inputs. small:
    activations of fewer than `small_bytes` go to a second, slower memory. pj: picojoules. price: in any currency, 0 where
    nobody asks.
    """

    name: str
    clock_mhz: float
    chains: int
    lanes: int
    gb_per_s: float
    small_gb_per_s: float
    small_bytes: int
    on_chip_mb: float
    latency_us: float  # of an operation that is not fused into another
    pj_per_mac: float
    pj_per_byte: float
    idle_watts: float = 0.0
    price: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            lowest = 0.0 if name in MAY_BE_ZERO else None
            if name != "name" and not _is_sound(value, lowest):
                raise UsageError(f"accelerator {self.name!r}: {name} must be a number above 0, got {value!r}")

    @property
    def macs_per_second(self) -> float:
        return self.chains * self.lanes * self.clock_mhz * 1e6


MAY_BE_ZERO = ("small_bytes", "latency_us", "idle_watts", "price", "pj_per_mac", "pj_per_byte", "on_chip_mb")
WHOLE = ("chains", "lanes", "small_bytes")


def read_accelerator(path: Path) -> Accelerator:
    """The accelerator that a JSON file describes. Raises `UsageError` naming the file and the field."""
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(given, dict):
        raise UsageError(f"{path} must hold one object with the fields {', '.join(_names())}")
    for name in given:
        if name not in _names():
            raise UsageError(f"{path}: an accelerator has no field {name[:40]!r}{did_you_mean(name[:40], _names())}")
    missing = [f.name for f in fields(Accelerator) if f.name not in given and f.name not in ("idle_watts", "price")]
    if missing:
        raise UsageError(f"{path} lacks {', '.join(missing)}")
    return Accelerator(**{name: _whole(path, name, value) for name, value in given.items()})


def _names() -> list[str]:
    return [f.name for f in fields(Accelerator)]


def _whole(path: Path, name: str, value: Any) -> Any:
    if name in WHOLE and isinstance(value, float):
        raise UsageError(f"{path}: {name} must be a whole number, got {value!r}")
    if name == "name" and not isinstance(value, str):
        raise UsageError(f"{path}: name must be text, got {value!r}")
    return value


def _is_sound(value: Any, lowest: float | None) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        return False
    return value > 0 if lowest is None else value >= lowest


# Multipliers (9024, two products each), clock and bandwidths of the card that FlightLLM was published for; the latency and the
# energies (of a memory access and of a product on an FPGA) are assumptions of the usual size.
U280 = Accelerator(
    name="u280",
    clock_mhz=225.0,
    chains=9024,
    lanes=2,
    gb_per_s=460.0,
    small_gb_per_s=38.0,
    small_bytes=4096,
    on_chip_mb=40.0,
    latency_us=0.5,
    pj_per_mac=1.0,
    pj_per_byte=40.0,
    idle_watts=20.0,
)

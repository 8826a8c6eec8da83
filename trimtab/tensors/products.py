"""Float32 matrix products at the speed of the machine, without giving up float32.

On some CPUs torch's default float32 product runs at less than half the speed of oneDNN's. The only switch that routes
products through oneDNN also *permits* bfloat16 arithmetic, which oneDNN then uses on some machines and not on others. So
the switch is tried, the result is compared with float64, and it stays on only where the arithmetic is float32 in fact.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

FLOAT32_ERROR = 3e-6  # relative; float32 products of this length reach 5e-7, bfloat16 ones 3e-3


@contextmanager
def fast_products() -> Iterator[bool]:
    """Inside, float32 products take the faster path if that path is accurate here. Yields whether it is taken."""
    switch = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # made at run time by torch
    before = switch.fp32_precision
    taken = _accurate()
    if taken:
        switch.fp32_precision = "bf16"
    try:
        yield taken
    finally:
        switch.fp32_precision = before


@cache
def _accurate() -> bool:
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    draw = torch.Generator().manual_seed(0)
    switch = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # made at run time by torch
    before = switch.fp32_precision
    switch.fp32_precision = "bf16"
    try:
        return all(_error(tokens, draw) < FLOAT32_ERROR for tokens in (1, 64, 2048))
    finally:
        switch.fp32_precision = before


def _error(tokens: int, draw: torch.Generator) -> float:
    x = torch.randn(tokens, 512, generator=draw)
    weight = torch.randn(768, 512, generator=draw)
    exact = x.double() @ weight.double().T
    return float((torch.nn.functional.linear(x, weight) - exact).norm() / exact.norm())

"""Q4_K is written so that the `gguf` package reads what was meant."""

import gguf
import pytest
import torch

from trimtab.host.export.gguf_blocks import Kind, decoded, encoded

BLOCK = 256


def values(kind: str) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    spread = torch.rand(5, 3, 8, 1, generator=draw) * 3
    made = torch.randn(5, 3, 8, 32, generator=draw) * spread
    if kind == "above zero":
        made = made.abs() + 1
    if kind == "below zero":
        made = -made.abs() - 1
    if kind == "zero rows":
        made[:2] = 0
    return made.view(5, 3 * BLOCK)


@pytest.mark.parametrize("kind", ["both", "above zero", "below zero", "zero rows"])
def test_nobody_is_further_away_than_the_grid_allows(kind):
    given = values(kind)
    stored = encoded(given, Kind.Q4_K)
    assert stored.shape == (5, 3 * gguf.GGML_QUANT_SIZES[Kind.Q4_K][1])
    groups = given.view(5, 3, 8, 32)
    reach = groups.amax(-1).clamp_min(0) - groups.amin(-1).clamp_max(0)
    # Half a step of the codes; half a level of 6 bits of the largest step, 15 codes up, and of the largest depth.
    step = reach.amax(-1, keepdim=True) / 15
    deepest = (-groups.amin(-1)).clamp_min(0).amax(-1, keepdim=True)
    slack = step / 63 / 2 * 15 + deepest / 63 / 2
    off = (decoded(stored, Kind.Q4_K).view_as(groups) - groups).abs().amax(-1)
    assert (off <= (reach / 15 / 2 + step / 63 / 4 + slack) * 1.01 + 1e-7).all()


def test_what_lies_on_the_grid_stays():
    draw = torch.Generator().manual_seed(1)
    codes = torch.randint(0, 16, (4, 8, 32), generator=draw).float()
    codes[..., 0], codes[..., 1] = 0, 15  # both ends of the grid occur
    s, m = torch.randint(5, 64, (2, 4, 8, 1), generator=draw).float()  # 15 * 5 > 63: zero is inside
    s[:, 0] = m[:, 0] = 63
    given = ((codes * s - m) / 8).view(4, BLOCK)
    assert torch.equal(decoded(encoded(given, Kind.Q4_K), Kind.Q4_K), given)

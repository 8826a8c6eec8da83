"""Which matrices get the bits."""

import pytest
import torch

from trimtab.core.errors import UsageError
from trimtab.core.kinds import Original, Seen, Storage
from trimtab.core.places import Role, Site
from trimtab.core.recipe import Recipe
from trimtab.core.registry import get
from trimtab.core.sizes import in_bytes
from trimtab.stats import OutputEntropy, Pivots

BLOCKS = 4
SITES = [Site(f"layers.{b}.{r}", r, (8, 16), block=b) for b in range(BLOCKS) for r in (Role.UP, Role.DOWN)]
CODES = Storage(lambda site, bits: bits * site.shape[0] * site.shape[1] // 8, lambda site, bits: 0, 1000, 8000, 10**6)


def by_entropy(entropy: list[float], bits: float, **knobs) -> list[int]:
    """The bits of both matrices of each block."""
    seen = Seen(
        {OutputEntropy: torch.tensor(entropy, dtype=torch.float64), Storage: CODES},
        torch.Generator().manual_seed(0),
    )
    chosen = get("luq")(bits=bits, **knobs).allocate(SITES, seen)
    return [chosen[s] for s in SITES]


def test_varied_blocks_get_the_bits() -> None:
    entropy = [1.0, 3.0, 2.0, 0.5]
    assert by_entropy(entropy, 3.0) == [2, 2, 4, 4, 4, 4, 2, 2]
    assert by_entropy(entropy, 2.5) == [2, 2, 4, 4, 2, 2, 2, 2]
    assert by_entropy(entropy, 2.0) == [2] * 8
    assert by_entropy(entropy, 3.0, order="reverse") == [4, 4, 2, 2, 2, 2, 4, 4]
    assert by_entropy([1.0] * 4, 3.0) == [4, 4, 4, 4, 2, 2, 2, 2]


def test_the_block_at_the_cut_is_split_to_use_the_budget_up() -> None:
    found = by_entropy([1.0, 3.0, 2.0, 0.5], 2.75)
    assert found[2:4] == [4, 4]
    assert sorted(found[4:6]) == [2, 4]
    assert sum(found) == 22


def by_stake(scale: list[float], pivot: list[float], bits: float) -> list[int]:
    draw = torch.Generator().manual_seed(0)
    weights = {s: torch.randn(8, 16, generator=draw) * scale[s.block] for s in SITES}
    pivots = {s: torch.full((16,), pivot[s.block], dtype=torch.float64) for s in SITES}
    chosen = get("shiftadd_bits")(bits=bits).allocate(SITES, Seen({Pivots: pivots, Original: weights, Storage: CODES}))
    return [chosen[s] for s in SITES]


def test_what_costs_most_to_round_gets_the_bits() -> None:
    """Large weights and unexplained inputs count alike, and what nothing is seen of counts nothing."""
    assert by_stake([1, 3, 1 / 3, 1], [1, 1, 1, 1], 3.0) == by_stake([1] * 4, [1, 3, 1 / 3, 1], 3.0)
    assert by_stake([1, 3, 1 / 3, 1], [1, 1, 1, 1], 3.0) == [3, 3, 4, 4, 2, 2, 3, 3]
    assert by_stake([1, 1, 1, 1], [1, 1, 1, 0], 2.75)[6:] == [2, 2]


def test_the_criterion_is_the_published_one_up_to_size() -> None:
    """||M||_F std(M)^2 for matrices of one size; of twice as many equal rows, twice the stake."""
    from trimtab.methods.allocate.shiftadd_bits import stake

    draw = torch.Generator().manual_seed(0)
    weights, pivots = torch.randn(3, 8, 16, generator=draw), torch.rand(3, 16, generator=draw).double()
    m = weights.double().abs() * pivots[:, None]
    score = m.flatten(1).norm(dim=1) * m.flatten(1).std(1, correction=0) ** 2
    found = torch.tensor([stake(w, p) for w, p in zip(weights, pivots, strict=True)], dtype=torch.float64)
    assert torch.allclose(found / found[0], score / score[0])
    assert stake(weights[0].repeat(2, 1), pivots[0]) == pytest.approx(2 * stake(weights[0], pivots[0]))


@pytest.mark.parametrize("bad", ["low=4, high=4", "bits=2.5, size='60MB'", "size='a lot'", "size='0MB'", "bits=0.5"])
@pytest.mark.parametrize("method", ["luq", "shiftadd_bits"])
def test_budgets_that_say_nothing_are_refused(method: str, bad: str) -> None:
    with pytest.raises(UsageError, match=method):
        Recipe.of(f"rtn by {method}({bad})")


def test_sites_outside_of_the_blocks_have_no_entropy() -> None:
    with pytest.raises(UsageError, match="lm_head is in no block"):
        get("luq")().allocate([Site("lm_head", Role.HEAD, (8, 8))], Seen({}))


@pytest.mark.parametrize(
    ("text", "bytes"),
    [("60MB", 60_000_000), ("1.1 GB", 1_100_000_000), ("512KiB", 524_288), ("123", 123), ("40%", 400), ("0.1%", 1)],
)
def test_sizes_are_read_as_written(text: str, bytes: int) -> None:
    assert in_bytes(text, 1000) == bytes


@pytest.mark.parametrize("text", ["", "MB", "-3MB", "3 XB", "1e9", "0", "60 M B", "٣MB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no size"):
        in_bytes(text, 1000)

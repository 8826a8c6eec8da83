"""The paired interval where it must be exact, how often it covers the truth, and how often it cries wolf."""

import math

import pytest
import torch
from torch import Tensor

from trimtab.core.errors import DataError
from trimtab.measure.paired import paired_difference, paired_ratio, resampled_counts
from trimtab.measure.perplexity import token_losses
from trimtab.measure.student import student_quantile
from trimtab.testing.tiny import tiny

TRIALS = 200
FEW, MANY = 4, 16  # 2 and 8 % of them


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_identical_models_do_not_differ() -> None:
    values = normal(torch.Generator().manual_seed(0), 3, 20)
    found = paired_difference(values, values)
    assert (found.difference, found.low, found.high, found.n, found.seeds) == (0.0, 0.0, 0.0, 20, 3)
    assert found.verdict() == "not separable"


def test_a_constant_shift_is_found_without_doubt() -> None:
    values = normal(torch.Generator().manual_seed(0), 3, 20)
    found = paired_difference(values + 0.25, values)
    assert found.difference == pytest.approx(0.25, abs=1e-12)
    assert found.low == pytest.approx(0.25, abs=1e-12)
    assert found.high == pytest.approx(0.25, abs=1e-12)
    assert (found.verdict(), found.verdict(lower_is_better=False)) == ("worse", "better")


def test_sides_swap_and_scale() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = normal(generator, 3, 20), normal(generator, 3, 20)
    one, other = paired_difference(left, right), paired_difference(3 * right, 3 * left)
    assert other.difference == pytest.approx(-3 * one.difference)
    assert one.low < one.difference < one.high
    assert other.high == pytest.approx(-3 * one.low)
    assert other.low == pytest.approx(-3 * one.high)
    assert paired_difference(left, right) == one


def test_one_seed_of_normal_windows_gets_at_least_students_interval() -> None:
    values = normal(torch.Generator().manual_seed(0), 1, 400)
    found, half = paired_difference(values, torch.zeros(1, 400)), 1.9659 * float(values.std()) / 20
    assert half * 0.9999 < found.high - found.difference < half * 1.1
    assert half * 0.9999 < found.difference - found.low < half * 1.1


def test_seeds_that_disagree_count_as_few_observations() -> None:
    """Windows that agree add nothing: the interval is Student's of the three seeds."""
    rows = torch.tensor([[0.0], [1.0], [5.0]], dtype=torch.float64)
    found = paired_difference(rows.expand(3, 50), torch.zeros(3, 50))
    half = 4.302653 * float(rows.std()) / math.sqrt(3)
    assert found.high - found.difference == pytest.approx(half, rel=1e-4)
    assert found.difference - found.low == pytest.approx(half, rel=1e-4)


def test_seeds_that_cannot_matter_add_nothing() -> None:
    """A method without randomness gives the same row for every seed."""
    windows = normal(torch.Generator().manual_seed(0), 1, 60)
    one, three = (paired_difference(windows.expand(n, 60), torch.zeros(n, 60)) for n in (1, 3))
    assert three.low == pytest.approx(one.low)
    assert three.high == pytest.approx(one.high)


def test_the_end_on_the_side_of_the_long_tail_moves_out() -> None:
    values = normal(torch.Generator().manual_seed(0), 1, 60).exp()
    found = paired_difference(values, torch.zeros(1, 60))
    assert found.high - found.difference > 1.1 * (found.difference - found.low)


def test_more_windows_make_it_narrower() -> None:
    values = normal(torch.Generator().manual_seed(0), 1, 400)
    wide = paired_difference(values[:, :25], torch.zeros(1, 25))
    narrow = paired_difference(values, torch.zeros(1, 400))
    assert narrow.high - narrow.low == pytest.approx((wide.high - wide.low) / 4, rel=0.35)


def test_of_a_single_window_nothing_is_known() -> None:
    found = paired_difference(torch.ones(2, 1), torch.zeros(2, 1))
    assert (found.difference, found.low, found.high) == (1.0, -math.inf, math.inf)
    assert found.verdict() == "not separable"


COVERAGE = {  # seeds, windows, parts of the noise (seeds, windows, cells), lognormal windows
    "windows": (3, 60, (0.0, 1.0, 0.1), False),
    "windows and seeds": (3, 24, (0.3, 1.0, 0.3), False),
    "seeds": (3, 60, (1.0, 0.01, 0.0), False),
    "skewed windows": (1, 60, (0.0, 1.0, 0.0), True),
}


@pytest.mark.parametrize("case", COVERAGE)
def test_coverage_is_near_95_percent(case: str) -> None:
    """300 intervals each: the binomial error is sqrt(.95 * .05 / 300) = 1.3 %."""
    seeds, windows, (of_seeds, of_windows, of_cells), skewed = COVERAGE[case]
    generator, trials, hits = torch.Generator().manual_seed(0), 300, 0
    for trial in range(trials):
        by_window = normal(generator, 1, windows)
        by_window = by_window.exp() - math.exp(0.5) if skewed else by_window
        cells = of_cells * normal(generator, seeds, windows)
        difference = of_seeds * normal(generator, seeds, 1) + of_windows * by_window + cells
        found = paired_difference(difference, torch.zeros_like(difference), seed=trial)
        hits += found.low <= 0 <= found.high
    assert 0.92 <= hits / trials <= 0.98


@pytest.fixture(scope="module")
def losses() -> Tensor:
    """[10 models, 120 windows, 31 tokens]: real losses. Every window writes with letters of its own, as documents do."""
    generator = torch.Generator().manual_seed(0)
    letters = torch.rand(120, 97, generator=generator).pow(25)
    letters[:, :3] = 0
    windows = torch.multinomial(letters, 32, replacement=True, generator=generator)
    models = (tiny("llama", seed, num_hidden_layers=1) for seed in range(10))
    return torch.stack([token_losses(model, windows, batch=40) for model in models])


def draw(of: int, count: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(of, generator=generator)[:count]


def test_tokens_of_a_window_are_alike(losses: Tensor) -> None:
    """Else the comparisons below would prove little: windows differ by more than their tokens would make them."""
    alone = (losses[0].var(1).mean() / losses.shape[2]).item()
    assert losses[0].mean(1).var().item() > 1.5 * alone


def halves(losses: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One model on two random halves of the tokens of each of 24 windows."""
    windows = losses[0, draw(120, 24, generator)]
    order = torch.rand(windows.shape, generator=generator).argsort(1)
    mixed = windows.gather(1, order)
    return mixed[:, :15].mean(1)[None], mixed[:, 15:30].mean(1)[None]


def swapped(losses: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two models, in every window the other way round by the toss of a coin."""
    pair = losses[:2, draw(120, 24, generator)].mean(2)  # [2, windows]
    toss = torch.rand(24, generator=generator) < 0.5
    return torch.where(toss, pair[0], pair[1])[None], torch.where(toss, pair[1], pair[0])[None]


def seeded(losses: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Three seeds of a method against three other seeds of the same."""
    models = losses[draw(10, 6, generator)][:, draw(120, 24, generator)].mean(2)  # [6, windows]
    return models[:3], models[3:]


@pytest.mark.parametrize("alike", [halves, swapped, seeded])
def test_what_does_not_differ_is_rarely_told_apart(alike, losses: Tensor) -> None:
    """200 comparisons of a model with itself: the interval leaves zero out in 2 to 8 % of them."""
    generator = torch.Generator().manual_seed(2)
    found = (paired_difference(*alike(losses, generator), seed=trial) for trial in range(TRIALS))
    assert FEW <= sum(one.verdict() != "not separable" for one in found) <= MANY


def test_a_ratio_is_that_of_the_sums() -> None:
    left, right, sizes = torch.tensor([8.0, 6.0, 10.0]), torch.tensor([4.0, 6.0, 2.0]), torch.tensor([10, 20, 30])
    found = paired_ratio(left, right, sizes)
    assert found.difference == pytest.approx((24 - 12) / 60)
    assert found.low < found.difference < found.high


def test_a_ratio_that_all_windows_share_is_certain() -> None:
    sizes = torch.tensor([10, 25, 60])
    found = paired_ratio(0.5 * sizes, 0.2 * sizes, sizes)
    assert found.low == pytest.approx(0.3, abs=1e-6)
    assert found.high == pytest.approx(0.3, abs=1e-6)


def test_a_ratio_to_nothing_is_an_error() -> None:
    with pytest.raises(DataError, match="stand for no text"):
        paired_ratio(torch.ones(2), torch.ones(2), torch.zeros(2))


def test_a_draw_with_replacement_has_as_many_as_there_are() -> None:
    counts = resampled_counts(7, 500, torch.Generator().manual_seed(0))
    assert counts.sum(1).eq(7).all()
    assert counts.mean().item() == 1
    assert counts.var().item() == pytest.approx(6 / 7, rel=0.1)


@pytest.mark.parametrize(("freedom", "value"), [(1, 12.7062), (2, 4.30265), (23, 2.06866), (99, 1.98422), (1e9, 1.95996)])
def test_students_quantiles(freedom: float, value: float) -> None:
    assert student_quantile(0.975, freedom) == pytest.approx(value, rel=2e-4)
    assert student_quantile(0.5, freedom) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("freedom", [1.3, 2.5, 40.7])
def test_students_quantile_between_whole_numbers(freedom: float) -> None:
    """95 % of the density, as the textbook writes it, lies between the two quantiles."""
    end = student_quantile(0.975, freedom)
    t = torch.linspace(-end, end, 200_001, dtype=torch.float64)
    height = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
    density = height * (1 + t.square() / freedom) ** (-(freedom + 1) / 2)
    assert torch.trapezoid(density, t).item() == pytest.approx(0.95, abs=1e-5)


@pytest.mark.parametrize(
    ("left", "right", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 4), r"must be \[seeds, windows\] alike, got \[2, 3\] and \[2, 4\]"),
        (torch.zeros(3), torch.zeros(3), "alike"),
        (torch.zeros(0, 3), torch.zeros(0, 3), "alike"),
        (torch.full((1, 2), math.nan), torch.zeros(1, 2), "not finite"),
    ],
)
def test_bad_input_is_an_error(left: Tensor, right: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        paired_difference(left, right)

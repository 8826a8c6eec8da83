"""Everything that is said of a task follows from the scores of its items."""

import math

import pytest
import torch
from torch import Tensor

from trimtab.core.errors import DataError
from trimtab.measure.items import ABSENT, Items
from trimtab.measure.kept import Kept


def items(scores: list[list[float]], gold: list[int], sizes: list[list[int]], greedy: list[list[bool]] | None = None) -> Items:
    count = len(scores)
    return Items(
        task="toy",
        ids=tuple(map(str, range(count))),
        gold=torch.tensor(gold),
        scores=torch.tensor(scores, dtype=torch.float64),
        sizes=torch.tensor(sizes),
        domains=("toy",) * count,
        greedy=torch.tensor(greedy or [[False] * len(scores[0])] * count),
        truncated=1,
        setting={"limit": None, "seed": 3},
    )


def choices() -> Items:
    """The second item has two choices only. Per byte, the longer text of the first one wins."""
    return items([[-4.0, -6.0, -9.0], [-2.0, -1.0, ABSENT]], [1, 1], [[2, 6, 3], [4, 4, 0]])


def answers() -> Items:
    return items([[-math.log(4)], [-math.log(2)], [-math.log(16)]], [0, 0, 0], [[1], [1], [2]], [[True], [True], [False]])


def test_the_likeliest_choice_is_the_answer() -> None:
    assert choices().right().tolist() == [False, True]
    assert choices().right(normalised=True).tolist() == [True, True]


def test_confidence_is_the_probability_among_the_choices_that_there_are() -> None:
    expected = [1 / (1 + math.exp(-2) + math.exp(-5)), 1 / (1 + math.exp(-1))]
    assert choices().confidence().tolist() == pytest.approx(expected)
    assert choices().confidence(normalised=True)[1].item() == pytest.approx(1 / (1 + math.exp(-0.25)))


def test_a_gold_answer_is_right_when_greedy_decoding_says_it() -> None:
    assert answers().right().tolist() == [True, True, False]
    assert answers().confidence().tolist() == pytest.approx([1 / 4, 1 / 2, 1 / 16])
    assert answers().bits_per_byte().tolist() == pytest.approx([2, 1, 2])


def test_bits_per_byte_of_choices_are_those_of_the_gold_one() -> None:
    assert choices().bits_per_byte().tolist() == pytest.approx([6 / 6 / math.log(2), 1 / 4 / math.log(2)])


def test_measurements_of_choices() -> None:
    accuracy, normalised = choices().measurements()
    assert (accuracy.name, accuracy.value, accuracy.n) == ("toy accuracy", 0.5, 2)
    assert accuracy.stderr == pytest.approx(0.5)  # sqrt(variance 0.5 / 2)
    assert (normalised.name, normalised.value, normalised.stderr) == ("toy accuracy, normalised", 1.0, 0.0)
    assert accuracy.setting == {"limit": None, "seed": 3}


def test_measurements_of_gold_answers() -> None:
    exact, bits = answers().measurements()
    assert (exact.name, exact.value) == ("toy exact match", pytest.approx(2 / 3))
    assert (bits.name, bits.unit, bits.n) == ("toy bits per byte", "bits/byte", 3)
    assert bits.value == pytest.approx((2 + 1 + 4) / 4)  # a ratio of sums, not a mean of ratios
    residual = torch.tensor([2 - 7 / 4, 1 - 7 / 4, 4 - 2 * 7 / 4], dtype=torch.float64)
    assert bits.stderr == pytest.approx(float(residual.std() / math.sqrt(3) * 3 / 4))


def test_one_item_has_no_standard_error() -> None:
    one = items([[-1.0, -2.0]], [0], [[1, 1]])
    assert all(math.isnan(m.stderr) for m in one.measurements())


def test_kept_and_given_back(tmp_path) -> None:
    kept, key = Kept("items", tmp_path), {"model": "x"}
    kept.put(key, *choices().kept())
    back = Items.from_kept(*kept.get(key))
    assert (back.task, back.ids, back.domains, back.truncated) == ("toy", ("0", "1"), ("toy", "toy"), 1)
    for name in ("gold", "scores", "sizes", "greedy"):
        mine, theirs = getattr(choices(), name), getattr(back, name)
        assert mine.dtype == theirs.dtype
        assert torch.equal(mine, theirs)
    assert back.measurements() == choices().measurements()


@pytest.mark.parametrize("change", [{"gold": torch.zeros(3)}, {"sizes": torch.ones(2, 2)}, {"domains": ("a",)}])
def test_parts_that_do_not_fit_each_other(change: dict[str, Tensor]) -> None:
    whole = vars(choices())
    with pytest.raises(DataError, match=r"toy: scores must be \[items, choices\]"):
        Items(**whole | change)

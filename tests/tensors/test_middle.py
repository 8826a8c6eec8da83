"""The median by counting is the median by sorting."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.tensors.middle import spread

NUMBERS = st.floats(-1.0, 2.0**100, width=32, allow_nan=False)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(NUMBERS, max_size=30), min_size=1, max_size=4))
def test_counting_gives_what_sorting_gives(parts: list[list[float]]) -> None:
    tensors = [torch.tensor(part) for part in parts]
    positive = torch.cat(tensors).double()
    positive = positive[positive > 0].sort().values
    if not len(positive):
        with pytest.raises(ArithmeticError, match="no number above zero"):
            spread(lambda: tensors)
        return
    middle = positive[[(len(positive) - 1) // 2, len(positive) // 2]].mean()
    assert spread(lambda: tensors) == (float(positive[0]), float(middle), float(positive[-1]))


def test_many_numbers_in_pieces() -> None:
    numbers = torch.randn(70_001, generator=torch.Generator().manual_seed(0)).abs()
    least, middle, largest = spread(lambda: numbers.split(9_999))
    assert (least, largest) == (float(numbers.min()), float(numbers.max()))
    assert middle == float(numbers.median())


def test_the_smallest_and_the_largest_float32() -> None:
    ends = torch.tensor([2.0**-149, 1.0, torch.finfo(torch.float32).max])
    assert spread(lambda: [ends]) == (2.0**-149, 1.0, torch.finfo(torch.float32).max)

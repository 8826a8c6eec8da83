"""The order of blocks: worthier first, never before those under them; every budget takes a beginning of it."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.tensors.stacking import ranking, taken

WORTHS = st.lists(st.lists(st.floats(-1, 1), min_size=1, max_size=5), min_size=1, max_size=5)


def test_worthier_blocks_are_earlier() -> None:
    assert ranking([[0.9, 0.2, 0.1], [0.5, 0.3, 0.05]]) == [0, 1, 1, 0, 0, 1]


def test_a_block_waits_for_those_under_it() -> None:
    assert ranking([[0.9, 0.1, 0.8], [0.9, 0.5, 0.4]]) == [0, 1, 1, 1, 0, 0]


def test_equal_ones_go_by_height_then_by_number() -> None:
    assert ranking([[1.0, 0.5, 0.5], [1.0, 0.5, 0.5]]) == [0, 1, 0, 1, 0, 1]


def test_no_block_is_skipped_for_a_cheaper_one() -> None:
    order = ranking([[1.0, 0.5], [1.0, 0.4]])
    assert taken(order, [10, 1], 11) == [1, 1]
    assert taken(order, [10, 1], 20) == [1, 1]
    assert taken(order, [10, 1], 21) == [2, 1]
    assert taken(order, [10, 1], 22) == [2, 2]


@given(WORTHS, st.data())
def test_more_room_never_takes_less_of_anything(worths: list[list[float]], data: st.DataObject) -> None:
    costs = data.draw(st.lists(st.integers(1, 9), min_size=len(worths), max_size=len(worths)))
    order, least = ranking(worths), sum(costs)
    assert sorted(order) == sorted(number for number, stack in enumerate(worths) for _ in stack)
    whole = sum(cost * len(stack) for cost, stack in zip(costs, worths, strict=True))
    counts = [taken(order, costs, room) for room in range(least, whole + 1)]
    for room, now in enumerate(counts, least):
        spent = sum(cost * count for cost, count in zip(costs, now, strict=True))
        assert spent <= room < spent + max(costs) or now == counts[-1]
    for less, more in pairwise(counts):
        assert all(a <= b for a, b in zip(less, more, strict=True))
    assert counts[0] == [1] * len(worths)
    assert counts[-1] == pytest.approx([len(stack) for stack in worths])

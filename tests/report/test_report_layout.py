"""Scales are exact at their ends, ticks are round and inside, labels do not lie on anything."""

import math
from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.report.layout import Box, Scale, covering, frontier, place_labels, spans

FRAME = Box(0, 0, 460, 340)


def test_a_scale_is_exact_at_its_ends_and_in_the_middle():
    scale = Scale(10, 30, 5, 95)
    assert [scale(10), scale(20), scale(30)] == [5, 50, 95]
    assert Scale(0, 1, 200, 0)(0.25) == 150  # downwards


def test_a_logarithmic_scale_gives_factors_equal_room():
    scale = Scale(1, 100, 0, 100, log=True)
    assert [scale(v) for v in (1, 10, 100)] == pytest.approx([0, 50, 100])


def test_what_lies_outside_is_drawn_at_the_border():
    assert Scale(0, 1)(-5) == 0
    assert Scale(0, 1)(7) == 100
    assert Scale(1, 10, log=True)(0) == 0


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9), st.integers(2, 8))
def test_ticks_are_inside_and_rise(low, width, about):
    scale = Scale(low, low + width)
    if scale.high - scale.low < 1e-9 * max(abs(low), 1):
        return  # closer than numbers of that size can tell apart
    ticks = scale.ticks(about)
    assert 2 <= len(ticks) <= 3 * about + 2
    assert all(a < b for a, b in pairwise(ticks))
    assert all(scale.low - 1e-9 * width <= tick <= scale.high + 1e-9 * width for tick in ticks)


@pytest.mark.parametrize(
    ("low", "high", "about", "expected"),
    [(0, 1, 4, [0, 0.25, 0.5, 0.75, 1]), (18.1, 29.4, 3, [20, 25]), (0, 97, 5, [0, 20, 40, 60, 80]), (-3, 3, 3, [-2, 0, 2])],
)
def test_ticks_are_round(low, high, about, expected):
    assert Scale(low, high).ticks(about) == expected


def test_logarithmic_ticks_are_round():
    assert Scale(8, 1200, log=True).ticks(3) == [10, 100, 1000]
    assert Scale(90, 560, log=True).ticks(3) == [100, 200, 500]
    ticks = Scale(20, 23, log=True).ticks(4)
    assert len(ticks) >= 2
    assert all(20 <= tick <= 23 for tick in ticks)


def test_a_scale_covers_what_it_shows():
    scale = covering([3.0, math.nan, 7.0])
    assert scale.low < 3 < 7 < scale.high
    single = covering([5.0])
    assert single.low < 5 < single.high
    assert covering([0.0]).ticks()
    assert covering([]).ticks()
    assert not covering([0.0, 10.0], log=True).log  # no logarithm of nought
    assert covering([1.0, 100.0], log=True).log


def test_spans():
    assert spans([1.0, 10.0, math.nan], 5)
    assert not spans([1.0, 4.0], 5)
    assert not spans([0.0, 10.0], 5)
    assert not spans([], 5)


def test_the_frontier_is_what_nothing_else_beats_in_both():
    points = [(100, 30.0), (120, 20.5), (130, 25.0), (540, 20.0), (540, 21.0), (50, 90.0)]
    assert frontier(points, lower_is_better=True) == [5, 0, 1, 3]
    assert frontier(points, lower_is_better=False) == [5]
    assert frontier([(1, 2.0), (1, 2.0)], True) == [0]


numbers = st.floats(10, 450)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(numbers, st.floats(10, 330), st.floats(10, 200)), min_size=1, max_size=14))
def test_labels_never_lie_on_each_other_or_on_a_point(given_points):
    points = [(x, y) for x, y, _ in given_points]
    placed = place_labels(points, [width for *_, width in given_points], 14, FRAME)
    boxes = [box for box in placed if box]
    marks = [Box(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    assert not [1 for a, b in combinations(boxes, 2) if a.overlaps(b)]
    assert not [1 for box in boxes for mark in marks if box.overlaps(mark)]
    assert all(box.inside(FRAME) for box in boxes)


def test_a_label_stands_beside_its_point_and_moves_away_from_what_is_taken():
    (beside,) = place_labels([(100, 100)], [80], 14, FRAME)
    assert beside == Box(109, 93, 189, 107)
    (moved,) = place_labels([(100, 100)], [80], 14, FRAME, [Box(110, 0, 460, 340)])
    assert moved is not None
    assert moved.right <= 100 - 9


def test_a_label_without_room_is_left_out():
    assert place_labels([(100, 100)], [900], 14, FRAME) == [None]

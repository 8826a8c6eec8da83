"""Numbers get the digits that their interval allows, and units that a person reads."""

import math

import pytest

from trimtab.report import numbers
from trimtab.report.document import SHARE, Estimate, estimate

SPACE, MINUS = numbers.SPACE, numbers.MINUS


@pytest.mark.parametrize(
    ("value", "half", "expected"),
    [
        (34.4321, 3.3, "34.4"),
        (34.4321, 0.033, "34.432"),
        (0.5321, 0.12, "0.53"),
        (1234.5, 250.0, f"1{SPACE}234"),
        (20.0, 1.7, "20.0"),
        (-0.0042, 0.0012, f"{MINUS}0.0042"),
        (-0.0001, 0.12, "0.00"),
        (3.14159, math.nan, "3.142"),
        (3.0, math.nan, "3"),
        (0.0, math.nan, "0"),
        (5.0, 0.0, "5"),
        (29_034_112.0, 1e5, "2.90×10⁷"),
        (math.nan, 1.0, numbers.UNKNOWN),
        (math.inf, 1.0, numbers.UNKNOWN),
    ],
)
def test_figure(value, half, expected):
    assert numbers.figure(value, half) == expected


def test_signed():
    assert numbers.signed(0.5321, 0.012) == "+0.532"
    assert numbers.signed(-0.5321, 0.012) == f"{MINUS}0.532"
    assert numbers.signed(0.0) == "0"


def test_roughly():
    assert [numbers.roughly(v) for v in (0.00701, 0.72, 12.3, 3e-7, 0.0)] == ["0.0070", "0.72", "12", "3.0×10⁻⁷", "0"]
    assert numbers.roughly(math.nan) == numbers.UNKNOWN


def test_size():
    assert numbers.size(0) == f"0{SPACE}bytes"
    assert numbers.size(999) == f"999{SPACE}bytes"
    assert numbers.size(100_600_000) == f"100.6{SPACE}MB"
    assert numbers.size(1_234_567) == f"1.235{SPACE}MB"
    assert numbers.size(3.2e15) == f"3200{SPACE}TB"
    assert numbers.round_size(100_000_000) == f"100{SPACE}MB"


def test_a_share_is_read_as_percent():
    share = estimate(0.4567, 0.02, 500, SHARE, "items", 0.0, 1.0)
    assert numbers.shown(share) == f"45.7{SPACE}%"
    assert numbers.interval(share) == f"41.8 to 49.6{SPACE}%"
    assert numbers.difference(Estimate(-0.031, -0.05, -0.012, 500, SHARE)) == f"{MINUS}3.1 points"
    assert numbers.difference_interval(Estimate(-0.031, -0.05, -0.012, 500, SHARE)) == f"{MINUS}5.0 to {MINUS}1.2"


def test_every_number_says_n():
    assert numbers.rests_on(Estimate(1.0, n=12264, of="tokens")) == f"n{SPACE}={SPACE}12{SPACE}264 tokens"
    assert numbers.rests_on(Estimate(1.0, n=1, of="files")) == f"n{SPACE}={SPACE}1 file"
    assert numbers.rests_on(Estimate(1.0, n=106_168_320, of="weights")) == f"n{SPACE}={SPACE}106.2 million weights"
    assert numbers.rests_on(Estimate(math.nan, n=3)) == ""


def test_an_interval_stays_inside_what_the_number_can_be():
    error = estimate(0.01, 0.02, 100, SHARE, "items", 0.0, 1.0)
    assert error.low == 0
    assert estimate(1.0, math.nan, 3).half != estimate(1.0, math.nan, 3).half  # one window: nothing is known of the error
    assert numbers.interval(estimate(1.0, math.nan, 3)) == ""
    assert numbers.interval(estimate(4.5, 0.0, 3)) == ""  # counted, not measured

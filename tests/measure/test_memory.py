"""The highest mark of memory is that of the work inside, where the system can forget what came before."""

import sys

import numpy
import pytest

from trimtab.measure import memory as room
from trimtab.measure.memory import peak_memory
from trimtab.testing.tiny import tiny

LARGE = 200 * 2**20


def held(size: int) -> int:
    """Writes `size` bytes of memory, and lets go of them."""
    return int(numpy.ones(size, dtype=numpy.uint8)[-1])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forgets the highest mark when asked")
def test_only_the_work_inside_counts() -> None:
    model = tiny("llama", num_hidden_layers=1)
    held(LARGE)
    with peak_memory(model) as small:
        held(2**20)
    with peak_memory(model) as large:
        held(LARGE)
    (before,), (after,) = small, large
    assert after.value - before.value > 0.8 * LARGE
    assert (before.name, before.unit, before.setting["since"]) == ("peak memory", "bytes", "the measurement began")


def test_where_nothing_can_be_forgotten_the_setting_says_so(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "FORGET", tmp_path / "no" / "such")
    monkeypatch.setattr(room, "STATUS", tmp_path / "no" / "such")
    with peak_memory(tiny("llama", num_hidden_layers=1)) as found:
        held(LARGE)
    assert found[0].value > LARGE
    assert found[0].setting["since"] == "the process began"

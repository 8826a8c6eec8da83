"""Kept results come back exactly, belong to their key alone, and a damaged one is no result."""

import errno
from pathlib import Path

import pytest
import torch

from trimtab.measure.kept import TENSORS, VALUE, Kept


@pytest.fixture
def kept(tmp_path):
    return Kept("losses", tmp_path)


def test_values_and_tensors_come_back(kept):
    losses = torch.arange(6, dtype=torch.float64).view(2, 3)
    kept.put({"model": "a", "windows": (1, 2)}, {"n": 6, "names": ["x"]}, {"losses": losses})
    value, tensors = kept.get({"model": "a", "windows": [1, 2]})
    assert value == {"n": 6, "names": ["x"]}
    assert torch.equal(tensors["losses"], losses)


def test_another_key_has_no_result(kept):
    kept.put({"model": "a"}, 1)
    assert kept.get({"model": "b"}) is None
    assert kept.get({"model": "a"}) == (1, {})


def test_the_last_result_counts(kept):
    kept.put({"model": "a"}, 1)
    kept.put({"model": "a"}, 2)
    assert kept.get({"model": "a"}) == (2, {})


@pytest.mark.parametrize("file", [VALUE, TENSORS])
def test_a_damaged_entry_is_no_result(kept, file):
    kept.put({"model": "a"}, 1, {"x": torch.ones(8)})
    (path,) = kept.place.glob(f"*/{file}")
    path.write_bytes(path.read_bytes()[:-3])
    assert kept.get({"model": "a"}) is None
    kept.put({"model": "a"}, 1)
    assert kept.get({"model": "a"}) == (1, {})


def test_what_another_process_put_meanwhile_counts_and_nothing_fails(kept, monkeypatch):
    rename = Path.rename

    def beaten(self, target):
        monkeypatch.setattr(Path, "rename", rename)
        kept.put({"model": "a"}, 2)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", beaten)
    kept.put({"model": "a"}, 1)
    assert kept.get({"model": "a"}) == (2, {})
    assert len(list(kept.place.iterdir())) == 1


def test_an_error_of_the_disk_is_an_error(kept, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="Input/output"):
        kept.put({"model": "a"}, 1)


def test_what_is_forgotten_is_gone(kept):
    kept.put({"model": "a"}, 1)
    kept.put({"model": "b"}, 2)
    kept.forget({"model": "a"})
    assert kept.get({"model": "a"}) is None
    assert kept.get({"model": "b"}) == (2, {})


def test_nothing_half_written_stays(kept):
    with pytest.raises(TypeError):
        kept.put({"model": "a"}, object())
    assert kept.get({"model": "a"}) is None
    assert list(kept.place.iterdir()) == []

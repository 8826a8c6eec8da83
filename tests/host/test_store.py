"""State on disk: what is committed is there whole, what is not does not exist, and damage is noticed."""

import json
import os
import subprocess
import sys

import pytest
import torch

from trimtab.core.errors import ModelError, UsageError
from trimtab.host.store import CURRENT, Damaged, Store, held


@pytest.fixture
def store(tmp_path):
    (tmp_path / "state").mkdir()
    return Store(tmp_path / "state")


def test_an_object_comes_back_as_it_was(store):
    wide = torch.arange(12.0).reshape(3, 4)
    tensors = {"a": wide.T, "b": wide[1], "empty": torch.zeros(0, dtype=torch.uint8), "half": wide.bfloat16(), "keep": wide > 3}
    name = store.put(tensors, {"x": [1, None, 0.1], "deep": {"y": "ü"}})
    store.commit({"name": name}, {name})
    found, about = store.get(name)
    assert about == {"x": [1, None, 0.1], "deep": {"y": "ü"}}
    for key, tensor in tensors.items():
        assert found[key].dtype == tensor.dtype
        assert torch.equal(found[key], tensor)


def test_only_what_was_committed_exists(store):
    assert store.newest() is None
    name = store.put({"x": torch.ones(2)}, {})
    assert store.newest() is None
    store.commit({"n": 1}, {name})
    assert store.newest() == {"n": 1}
    store.put({"x": torch.zeros(3)}, {})
    assert Store(store.folder).newest() == {"n": 1}


def test_the_last_two_are_kept_and_nothing_else(store):
    for number in range(5):
        name = store.put({"x": torch.full((2,), float(number))}, {})
        store.commit({"n": number}, {name})
    assert len(json.loads((store.folder / CURRENT).read_text())) == 2
    assert len(list(store.objects.iterdir())) == 4
    assert store.newest() == {"n": 4}


def test_every_flipped_bit_is_noticed(store):
    name = store.put({"x": torch.arange(3.0)}, {"y": 1})
    store.commit({"n": 1}, {name})
    path = store.objects / name
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(Damaged, match="has changed"):
            store.get(name)
    for length in (0, 7, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(Damaged):
            store.get(name)
    path.unlink()
    with pytest.raises(ModelError, match=r"all that was kept .* is damaged .*--fresh"):
        store.newest()


@pytest.mark.parametrize("content", ["", "{}", "[1]", '["../elsewhere"]', "[" * 100000])
def test_a_damaged_pointer_is_an_error_and_not_a_new_start(store, content):
    name = store.put({"x": torch.ones(1)}, {})
    store.commit({}, {name})
    (store.folder / CURRENT).write_text(content)
    with pytest.raises(ModelError, match=r"damaged .*--fresh"):
        store.newest()


def test_the_lock_ends_with_its_process(tmp_path):
    hold = "import sys; from pathlib import Path; from trimtab.host.store import held\n"
    hold += "with held(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", hold, str(tmp_path / "state")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match=f"process {other.pid} is writing there"), held(tmp_path / "state"):
            pass
        other.kill()
    assert (tmp_path / "state" / "lock").exists()
    with held(tmp_path / "state"):
        assert (tmp_path / "state" / "lock").read_text() == f"{os.getpid()}\n"
    assert not (tmp_path / "state").exists()

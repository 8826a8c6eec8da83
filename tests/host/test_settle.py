"""Weights leave the mapping of their file: same values, memory of their own, the file's pages given back."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from trimtab.host.settle import settle

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux says what is mapped")


@pytest.fixture
def mapped(tmp_path):
    """A module whose weights, 8 MB, lie in a mapped file, and their values."""
    draw = torch.Generator().manual_seed(0)
    values = {"0.weight": torch.randn(1000, 1001, generator=draw), "1.weight": torch.randn(1001, 1003, generator=draw)}
    save_file(values, tmp_path / "weights.safetensors")
    model = nn.Sequential(nn.Linear(1001, 1000, bias=False), nn.Linear(1003, 1001, bias=False))
    for name, tensor in load_file(tmp_path / "weights.safetensors").items():
        model.get_parameter(name).data = tensor
    return model, values


def resident(name: str) -> int:
    """Bytes of the file's mapping that are in memory."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0] and ":" not in line.split()[0]:
            inside = line.endswith(name)
        elif inside and line.startswith("Rss:"):
            found += int(line.split()[1]) * 1024
    return found


def test_values_survive_and_the_file_is_let_go(mapped, tmp_path):
    model, values = mapped
    kept = model[0].weight.detach()  # another tensor in the same mapping
    assert torch.equal(kept, values["0.weight"])
    assert resident("weights.safetensors") > 3_000_000
    settle(model)
    assert resident("weights.safetensors") < 100_000  # the header and the pages that two tensors share
    for name, value in values.items():
        assert torch.equal(model.get_parameter(name), value)
    assert torch.equal(kept, values["0.weight"])  # read from the file again
    (tmp_path / "weights.safetensors").unlink()
    model[0].weight.data.zero_()
    assert torch.equal(model[1].weight, values["1.weight"])


def test_memory_of_its_own_is_left_alone():
    model = nn.Linear(300, 300)
    before = model.weight.data_ptr()
    settle(model)
    assert model.weight.data_ptr() == before

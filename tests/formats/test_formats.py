"""What every format promises: its file decodes to dense(), comes back bit for bit, and is counted to the byte."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from written_formats import decode

from trimtab.core.kinds import LinearWeight
from trimtab.formats import (
    FORMATS,
    build,
    is_plain,
    layout,
    linear,
)
from trimtab.formats.activations import rounds_inputs
from trimtab.testing.weights import activations, examples, rotation


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def matrix(*size: int) -> torch.Tensor:
    return torch.randn(*size, generator=seeded())


ALL = [w for size in ((17, 33), (8, 48), (1, 2), (5, 12)) for w in examples(*size, seeded())]
ALL += [rotation(width, seeded()) for width in (1, 12, 17)]
ALL += activations(17, 33, seeded())
over_all = pytest.mark.parametrize("weight", ALL, ids=[f"{i}-{w.kind}" for i, w in enumerate(ALL)])


ONE_ROUNDING = {"dense", "masked", "nm", "grouped", "block_diagonal"}


def test_examples_cover_every_format():
    assert {w.kind for w in ALL} == set(FORMATS)


@over_all
def test_dense_is_what_the_file_says(weight):
    expected, dense = decode(weight.spec(), weight.tensors()), weight.dense()
    assert dense.dtype == torch.float32
    assert tuple(dense.shape) == weight.shape
    if weight.kind in ONE_ROUNDING:
        assert torch.equal(dense, expected.float())
    else:
        assert torch.allclose(dense.double(), expected, rtol=0, atol=3e-6 * float(expected.abs().max()) + 1e-12)


@over_all
def test_round_trip_through_a_file(weight, tmp_path):
    save_file(weight.tensors(), tmp_path / "w.safetensors")
    spec, stored = json.loads(json.dumps(weight.spec())), load_file(tmp_path / "w.safetensors")
    made = build(spec, stored)
    assert type(made) is type(weight)
    assert made.spec() == weight.spec() == spec
    assert torch.equal(made.dense(), weight.dense())
    assert made.tensors().keys() == weight.tensors().keys()
    for name, tensor in weight.tensors().items():
        assert torch.equal(made.tensors()[name], tensor)
        assert made.tensors()[name].dtype == tensor.dtype


@over_all
def test_layout_and_bits_are_those_of_the_tensors(weight, tmp_path):
    stored = weight.tensors()
    assert layout(weight.spec()) == {name: (tuple(t.shape), t.dtype) for name, t in stored.items()}
    assert all(t.is_contiguous() and "." not in name for name, t in stored.items())
    counted = sum(len(t.reshape(-1).view(torch.uint8)) for t in stored.values())
    assert weight.bits == 8 * counted / math.prod(weight.shape)


@over_all
def test_protocol_and_identity(weight):
    assert isinstance(weight, LinearWeight)
    assert weight == weight
    assert weight != build(weight.spec(), weight.tensors())
    assert f"{weight.shape[0]} x {weight.shape[1]}" in repr(weight)
    assert is_plain(weight) == (weight.kind == "dense")
    with pytest.raises(AttributeError):
        weight.shape = (1, 1)


@over_all
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear_is_the_product_with_dense(weight, dtype):
    x, bias = matrix(2, 3, weight.shape[1]).to(dtype), matrix(weight.shape[0]).to(dtype)
    y = linear(x, weight, bias)
    if rounds_inputs(weight.spec()):
        pytest.skip("rounds x first: test_activations.py")
    expected = F.linear(x.double(), weight.dense().double(), bias.double())
    size = F.linear(x.double().abs(), weight.dense().double().abs()).max() + 1
    assert y.dtype == dtype
    assert y.shape == (2, 3, weight.shape[0])
    assert torch.allclose(y.double(), expected, rtol=0, atol=float(size) * 16 * torch.finfo(dtype).eps)
    assert torch.equal(y, linear(x, weight, bias))
    assert torch.allclose(linear(x, weight) + bias, y, rtol=0, atol=float(size) * 16 * torch.finfo(dtype).eps)

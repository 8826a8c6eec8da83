"""The packed module multiplies exactly as the formats say, keeps its bits wherever it is moved, and caches nothing stale."""

import copy

import pytest
import torch
from host_models import chain, grouped, total, values

from trimtab import formats
from trimtab.engine import packed_linear
from trimtab.engine.packed_linear import PackedLinear, PackedStack

MATRIX = values(24, 32, seed=5)
WEIGHTS = {
    "grouped": grouped(MATRIX),
    "masked": formats.Masked(MATRIX, values(24, 32, seed=6) > 0),
    "chain": chain(MATRIX),
    "sum": total(MATRIX),
    "rotated": formats.Rotated(grouped(MATRIX), 8, torch.ones(32)),
    "rotated_sum": formats.Rotated(total(MATRIX), 8),
    "dense": formats.Dense(MATRIX),
}


@pytest.fixture(params=WEIGHTS)
def weight(request):
    return WEIGHTS[request.param]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cache", [True, False])
def test_forward_is_the_formats_product_to_the_last_bit(weight, dtype, cache, monkeypatch):
    monkeypatch.setattr(packed_linear, "DENSE_CACHE", cache)
    x, bias = values(2, 3, 32, seed=7).to(dtype), values(24, seed=8).to(dtype)
    module = PackedLinear.of(weight, bias).eval()
    expected = formats.linear(x, weight, bias)
    assert torch.equal(module(x), expected)
    assert torch.equal(module(x), expected)


def test_state_is_the_tensors_of_the_weight(weight):
    module = PackedLinear.of(weight, values(24))
    assert module.state_dict().keys() == {*weight.tensors(), "bias"}
    assert (module.out_features, module.in_features) == weight.shape
    empty = PackedLinear.empty(weight.spec(), True, torch.float32)
    assert {k: (v.shape, v.dtype, v.device.type) for k, v in empty.state_dict().items()} == {
        k: (v.shape, v.dtype, "meta") for k, v in module.state_dict().items()
    }


def test_rebuilds_the_weight(weight):
    assert torch.equal(PackedLinear.of(weight).weight_value.dense(), weight.dense())


def test_moving_never_casts_what_is_packed():
    module = PackedLinear.of(total(MATRIX), values(24))
    before = {name: value.clone() for name, value in module.named_buffers()}
    for move in (lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.double(), lambda m: m.float()):
        move(module)
        assert {n: b.dtype for n, b in module.named_buffers()} == {n: b.dtype for n, b in before.items()}
        assert all(torch.equal(buffer, before[name]) for name, buffer in module.named_buffers())
    assert module.to(torch.bfloat16).bias.dtype == torch.bfloat16
    assert all(buffer.is_meta for buffer in module.to("meta").buffers())


@pytest.fixture
def unpackings(monkeypatch):
    count = []
    original = formats.Grouped.dense
    monkeypatch.setattr(formats.Grouped, "dense", lambda self: (count.append(1), original(self))[1])
    return count


def test_unpacks_once_in_eval_and_every_time_in_training(unpackings):
    module, x = PackedLinear.of(grouped(MATRIX)).eval(), values(3, 32)
    module(x), module(x)
    assert len(unpackings) == 1
    module.train()
    module(x), module(x)
    assert len(unpackings) == 3
    module.eval()
    module(x), module(x)
    assert len(unpackings) == 4
    module.drop_cache()
    module(x)
    assert len(unpackings) == 5


def test_cache_can_be_switched_off(unpackings, monkeypatch):
    monkeypatch.setattr(packed_linear, "DENSE_CACHE", False)
    module, x = PackedLinear.of(grouped(MATRIX)).eval(), values(3, 32)
    module(x), module(x)
    assert len(unpackings) == 2


@pytest.mark.parametrize("how", ["load_state_dict", "setattr", "to"])
def test_new_tensors_are_never_answered_from_the_cache(how):
    x, other = values(3, 32), grouped(values(24, 32, seed=11))
    module = PackedLinear.of(grouped(MATRIX)).eval()
    module(x)
    if how == "load_state_dict":
        module.load_state_dict(other.tensors())
    elif how == "setattr":
        for name, tensor in other.tensors().items():
            setattr(module, name, tensor)
    else:
        module.to("meta").to_empty(device="cpu").load_state_dict(other.tensors())
    assert torch.equal(module(x), formats.linear(x, other))


def test_copies_do_not_carry_the_cache():
    module, x = PackedLinear.of(grouped(MATRIX)).eval(), values(3, 32)
    expected = module(x)
    twin = copy.deepcopy(module)
    assert not twin._cache
    assert torch.equal(twin(x), expected)


def test_a_matrix_kept_during_inference_mode_serves_a_backward_pass():
    module = PackedLinear.of(grouped(MATRIX)).eval()
    x = values(3, 32)
    with torch.inference_mode():
        module(x)
    x.requires_grad_()
    module(x).sum().backward()
    assert torch.allclose(x.grad, grouped(MATRIX).dense().sum(0).expand(3, -1))


@pytest.mark.parametrize("transposed", [False, True])
def test_stack_answers_like_the_parameter_it_replaces(transposed):
    experts = [grouped(MATRIX), formats.Dense(MATRIX), chain(MATRIX)]
    stack = PackedStack([PackedLinear.of(w) for w in experts], torch.float32, transposed).eval()
    for number, weight in enumerate(experts):
        expected = weight.dense().T if transposed else weight.dense()
        for index in (number, torch.tensor(number)):
            assert torch.equal(stack[index], expected)
            assert torch.equal(stack.train()[index], expected)
            stack.eval()
    assert len(stack) == 3
    assert [type(w) for w in stack.weight_values] == [type(w) for w in experts]
    with pytest.raises(IndexError, match="no expert 3"):
        stack[3]


def test_stack_follows_the_compute_dtype_and_keeps_its_bits():
    stack = PackedStack([PackedLinear.of(grouped(MATRIX))], torch.float32).eval()
    before = stack.state_dict()
    stack.to(torch.bfloat16)
    assert stack[0].dtype == torch.bfloat16
    assert torch.equal(stack[0], grouped(MATRIX).dense().bfloat16())
    assert stack.state_dict().keys() == {"0.codes", "0.scale"}
    assert all(torch.equal(value, before[name]) for name, value in stack.state_dict().items())


def test_stack_skeleton_has_the_same_state():
    stack = PackedStack([PackedLinear.of(grouped(MATRIX)), PackedLinear.of(chain(MATRIX))], torch.float32, True)
    empty = PackedStack.empty(stack.spec, torch.float32)
    shapes = [{k: (v.shape, v.dtype) for k, v in s.state_dict().items()} for s in (stack, empty)]
    assert shapes[0] == shapes[1]
    assert empty.spec == stack.spec

"""Putting a weight where a matrix was, in every kind of module that models keep matrices in."""

import pytest
import torch
from host_models import MODELS, gpt2, grouped, llama, logits, mixtral, pack, packed_mixtral, tokens, values
from torch import nn
from transformers.pytorch_utils import Conv1D

from trimtab import formats
from trimtab.core.errors import ModelError
from trimtab.engine import surgery
from trimtab.engine.packed_linear import PackedLinear, PackedStack
from trimtab.host.checkpoint import skeleton

UP = "model.layers.1.mlp.up_proj"
EXPERTS = "model.layers.0.mlp.experts.gate_up_proj"


def test_dense_weights_give_plain_layers_of_the_models_dtype():
    model = llama().to(torch.bfloat16)
    surgery.place(model, UP, formats.Dense(values(48, 32)), values(48))
    new = model.get_submodule(UP)
    assert type(new) is nn.Linear
    assert (new.weight.shape, new.weight.dtype, new.bias.dtype) == ((48, 32), torch.bfloat16, torch.bfloat16)
    assert torch.equal(new.weight, values(48, 32).bfloat16())
    assert not new.training


def test_placing_does_not_write_into_what_is_shared():
    model = llama()
    before = model.model.embed_tokens.weight.detach().clone()
    surgery.place(model, "lm_head", formats.Dense(values(97, 32)))
    assert torch.equal(model.model.embed_tokens.weight, before)
    given = values(48, 32)
    surgery.place(model, UP, formats.Dense(given))
    with torch.no_grad():
        model.get_submodule(UP).weight.zero_()
    assert given.abs().sum() > 0


def test_packed_layers_multiply_like_their_dense_matrix():
    model, twin = llama(), llama()
    pack(model, UP)
    dense = grouped(twin.get_submodule(UP).weight).dense()
    surgery.place(twin, UP, formats.Dense(dense))
    assert torch.equal(logits(model), logits(twin))
    surgery.place(model, UP, formats.Dense(dense))  # and back again
    assert type(model.get_submodule(UP)) is nn.Linear
    assert torch.equal(logits(model), logits(twin))


def test_a_packed_layer_between_others_of_lower_precision():
    model = llama().to(torch.bfloat16)
    pack(model, UP)
    surgery.place(model, UP, model.get_submodule(UP).weight_value, values(64))
    assert model.get_submodule(UP).bias.dtype == torch.bfloat16
    assert logits(model).dtype == torch.bfloat16


def test_conv1d_stays_conv1d():
    model = gpt2()
    path, expected = "transformer.h.0.mlp.c_fc", logits(model)
    old = model.get_submodule(path)
    surgery.place(model, path, formats.Dense(old.weight.detach().T), old.bias, transposed=True)
    assert isinstance(model.get_submodule(path), Conv1D)
    assert torch.equal(logits(model), expected)
    surgery.place(model, path, formats.Dense(old.weight.detach().T), None, transposed=True)
    assert torch.equal(model.get_submodule(path).bias, torch.zeros(128))
    pack(model, path)
    x = values(3, 32)
    assert torch.equal(model.get_submodule(path)(x), x @ grouped(old.weight.T).dense().T)


def test_modules_with_a_forward_of_their_own_keep_their_shape():
    model = mixtral()
    router = "model.layers.0.mlp.gate"
    surgery.place(model, router, formats.Dense(values(3, 32, seed=4)))
    assert torch.equal(model.get_submodule(router).weight, values(3, 32, seed=4))
    for path, weight in (
        (router, grouped(values(3, 32))),
        (router, formats.Dense(values(2, 32))),
        ("model.embed_tokens", grouped(values(97, 32))),
        ("model.norm", formats.Dense(values(32, 1))),
    ):
        with pytest.raises(ModelError, match=f"{path} is a .*keeps a dense matrix"):
            surgery.place(model, path, weight)


def test_experts_become_a_stack_and_a_parameter_again():
    model = mixtral()
    model.set_experts_implementation("eager")
    expected, matrices = logits(model), model.get_parameter(EXPERTS).detach().clone()
    surgery.place(model, EXPERTS, grouped(matrices[1]), index=1)
    assert isinstance(model.get_submodule(EXPERTS), PackedStack)
    assert [w.kind for w in model.get_submodule(EXPERTS).weight_values] == ["dense", "grouped", "dense"]
    assert not torch.equal(logits(model), expected)
    surgery.place(model, EXPERTS, formats.Dense(matrices[1]), index=1)
    assert torch.equal(model.get_parameter(EXPERTS), matrices)
    assert torch.equal(logits(model), expected)


def test_packing_experts_makes_the_model_loop_over_them():
    model = mixtral()
    assert model.config._experts_implementation != "eager"
    surgery.place(model, EXPERTS, grouped(model.get_parameter(EXPERTS)[0]), index=0)
    assert model.config._experts_implementation == "eager"
    assert model.generate(tokens()[:1], max_new_tokens=2, do_sample=False).shape == (1, 11)


def test_experts_stored_transposed():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.Parameter(values(2, 32, 24))  # [experts, in, out]

    class Model(type(mixtral())):
        def __init__(self, config):
            super().__init__(config)
            self.extra = Experts()

    model = Model(mixtral().config)
    surgery.place(model, "extra.up", formats.Dense(values(24, 32, seed=2)), transposed=True, index=1)
    assert torch.equal(model.extra.up[1], values(24, 32, seed=2).T)
    surgery.place(model, "extra.up", grouped(values(24, 32, seed=3)), transposed=True, index=0)
    assert torch.equal(model.extra.up[0], grouped(values(24, 32, seed=3)).dense().T)
    assert torch.equal(model.extra.up[1], values(24, 32, seed=2).T)


def test_experts_that_cannot_be_packed():
    model = mixtral()
    weight = grouped(model.get_parameter(EXPERTS)[0])
    with pytest.raises(ModelError, match="has 3 experts, there is no number 3"):
        surgery.place(model, EXPERTS, weight, index=3)
    with pytest.raises(ModelError, match="no stack of experts"):
        surgery.place(model, "model.layers.0.mlp.gate.weight", weight, index=0)
    holder = nn.Module()
    holder.register_parameter("up", nn.Parameter(values(2, 96, 32)))
    with pytest.raises(ModelError, match="does not loop over its experts"):
        surgery.place(holder, "up", weight, index=0)


def test_no_such_place():
    with pytest.raises(ModelError, match=r"no module 'model\.layers\.7\.mlp\.up_proj'"):
        surgery.place(llama(), "model.layers.7.mlp.up_proj", formats.Dense(values(64, 32)))


def test_an_unchanged_model_has_nothing_to_describe():
    for make in (llama, gpt2, mixtral):
        model = make()
        assert surgery.describe(model, skeleton(model.config, type(model))) == {}


@pytest.mark.parametrize("name", MODELS)
def test_a_described_skeleton_has_the_models_state(name):
    model = MODELS[name]()
    plain = skeleton(model.config, type(model))
    surgery.shape(plain, surgery.describe(model, plain), torch.float32)
    states = [{k: (v.shape, v.dtype) for k, v in m.state_dict().items()} for m in (model, plain)]
    assert states[0] == states[1]
    assert all(value.is_meta for value in plain.state_dict().values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"experts": []}, "1 to 65536 experts"),
        ({"experts": "many"}, "1 to 65536 experts"),
        ({"experts": [1, 2, 3]}, "mapping"),
        ({"transposed": 1}, "true or false"),
    ],
)
def test_hostile_stacks(change, message):
    model = packed_mixtral()
    plain = skeleton(model.config, type(model))
    entry = surgery.describe(model, plain)[EXPERTS]
    with pytest.raises(ModelError, match=message):
        surgery.shape(plain, {EXPERTS: {**entry, **change}}, torch.float32)
    with pytest.raises(ModelError, match="has 3 experts, not 2"):
        surgery.shape(plain, {EXPERTS: {**entry, "experts": entry["experts"][:2]}}, torch.float32)


def test_a_conv1d_skeleton_keeps_its_bias():
    model = gpt2()
    with pytest.raises(ModelError, match="always has a bias"):
        surgery.resize_linear(model, "transformer.h.0.mlp.c_fc", 40, 32, bias=False)
    surgery.resize_linear(model, "transformer.h.0.mlp.c_fc", 40, 32, bias=True)
    assert model.transformer.h[0].mlp.c_fc.weight.shape == (32, 40)


def test_packed_layers_are_found_by_type():
    model = MODELS["llama"]()
    assert sum(isinstance(m, PackedLinear) for m in model.modules()) == 4


def test_an_error_without_words_is_named_by_its_kind(monkeypatch):
    def fail(*_):
        raise RuntimeError

    monkeypatch.setattr(surgery, "_shape_one", fail)
    with pytest.raises(ModelError, match=f"cannot build '{UP}' as described: RuntimeError"):
        surgery.shape(llama(), {UP: {"kind": "dense"}}, torch.float32)

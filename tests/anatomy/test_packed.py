"""Compressed modules and stacks are sites like any others."""

import pytest
import torch
from torch import Tensor

from trimtab.anatomy import Anatomy, Watch
from trimtab.core.places import Role
from trimtab.engine.packed_linear import PackedLinear, PackedStack
from trimtab.formats.dense import Dense
from trimtab.testing.tiny import tiny, tokens


def pack(anatomy: Anatomy) -> None:
    """Every matrix of block 1 in a packed module, without changing a number."""
    for stage in anatomy.stages(1):
        for site in stage:
            if site.role is Role.ROUTER or (site.index or 0) > 0:
                continue
            owner, _, name = site.path.rpartition(".")
            if site.index is None:
                packed = PackedLinear.of(anatomy.weight(site), anatomy.bias(site))
            else:
                experts = [PackedLinear.of(Dense(anatomy.weight(s).dense())) for s in stage]
                packed = PackedStack(experts, torch.float32, site.transposed)
                delattr(anatomy.model.get_submodule(owner), name)
            setattr(anatomy.model.get_submodule(owner), name, packed)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "gpt_oss", "phi3", "opt"])
def test_a_packed_model_has_the_same_anatomy(name: str) -> None:
    model = tiny(name)
    before, ids = Anatomy.of(model), tokens(model)
    inputs: list[dict[str, Tensor]] = [{}, {}]
    couplings = before.couplings()
    weights = {site.name: before.weight(site).dense().clone() for site in before.sites}
    biases = {site.name: before.bias(site) is not None for site in before.sites}

    def look(anatomy: Anatomy, into: dict[str, Tensor]) -> None:
        with torch.no_grad(), Watch(anatomy, anatomy.block_sites(1), lambda g, x: into.__setitem__(g[0].name, x.clone())):
            model(ids, use_cache=False)

    look(before, inputs[0])
    pack(before)
    after = Anatomy.of(model)
    look(after, inputs[1])

    assert [(s.name, s.role, s.shape) for s in after.sites] == [(s.name, s.role, s.shape) for s in before.sites]
    assert [[s.name for s in stage] for stage in after.stages(1)] == [[s.name for s in stage] for stage in before.stages(1)]
    assert not any(site.transposed for site in after.block_sites(1))
    assert all(torch.equal(after.weight(site).dense(), weights[site.name]) for site in after.sites)
    assert {site.name: after.bias(site) is not None for site in after.sites} == biases
    feeds = [{norm.path: [site.name for site in norm.feeds] for norm in a.norms()} for a in (before, after)]
    assert feeds[0] == feeds[1]
    assert inputs[0].keys() == inputs[1].keys()
    assert all(torch.allclose(inputs[0][key], inputs[1][key], atol=1e-5) for key in inputs[0])
    for a, b in zip(couplings, after.couplings(), strict=True):
        assert a.name == b.name
        assert all(torch.equal(x.indices, y.indices) for x, y in zip(a.members, b.members, strict=True))


def test_watching_a_packed_stack_leaves_it_in_place() -> None:
    model = tiny("mixtral")
    pack(Anatomy.of(model))
    stack = model.model.layers[1].mlp.experts.gate_up_proj
    anatomy = Anatomy.of(model.eval())
    kinds: list[str] = []
    with Watch(anatomy, anatomy.match("layers.1.mlp.experts.gate_up_proj"), lambda g, x: kinds.append(anatomy.weight(g[0]).kind)):
        model(tokens(model), use_cache=False)
    assert set(kinds) == {"dense"}
    anatomy.couplings()
    assert model.model.layers[1].mlp.experts.gate_up_proj is stack
    assert stack.training is False
    model.train()
    Anatomy.of(model).couplings()
    assert all(module.training for module in stack.modules())

import copy

import pytest
import torch
from torch import Tensor

from trimtab.anatomy import Anatomy
from trimtab.core.places import Role, Site
from trimtab.testing.tiny import tiny, tokens


def roles(anatomy: Anatomy) -> dict[str, list[str]]:
    return {norm.path: [site.role.value for site in norm.feeds] for norm in anatomy.norms()}


def test_norms_feed_what_follows_them() -> None:
    found = roles(Anatomy.of(tiny("llama")))
    assert found["model.layers.2.input_layernorm"] == ["q", "k", "v"]
    assert found["model.layers.2.post_attention_layernorm"] == ["gate", "up"]
    assert found["model.norm"] == ["head"]
    assert len(found) == 9


def test_the_norm_before_experts_feeds_the_router_and_all_of_them() -> None:
    for name in ("mixtral", "gpt_oss"):
        found = roles(Anatomy.of(tiny(name)))
        assert found["model.layers.1.post_attention_layernorm"] == ["router", *["gate_up"] * 4]


def test_norms_behind_a_branch_feed_nothing() -> None:
    assert roles(Anatomy.of(tiny("olmo2"))) == {"model.norm": ["head"]}
    found = roles(Anatomy.of(tiny("gemma3")))
    assert found["model.layers.0.pre_feedforward_layernorm"] == ["gate", "up"]
    assert not any("post_" in path or "q_norm" in path for path in found)


@pytest.mark.parametrize(
    ("name", "offset", "centred"),
    [("llama", 0, False), ("gemma2", 1, False), ("gemma3", 1, False), ("gpt2", 0, True), ("opt", 0, True), ("lfm2", 0, False)],
)
def test_how_a_norm_acts(name: str, offset: float, centred: bool) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        norms = Anatomy.of(tiny(name).to(dtype)).norms()
        assert {norm.offset for norm in norms} == {offset}
        assert {norm.centred for norm in norms} == {centred}


def scale_inputs(anatomy: Anatomy, site: Site, gain: Tensor, shift: Tensor | None) -> None:
    """The matrix then does to x what it did to x * gain + shift."""
    module = anatomy.module(site)
    matrix = module.weight if site.index is None else getattr(module, site.path.rpartition(".")[2])[site.index]
    matrix = matrix.T if site.transposed else matrix
    if shift is not None and module.bias is None:
        module.bias = torch.nn.Parameter(matrix @ shift)
    elif shift is not None:
        module.bias.add_(matrix @ shift)
    matrix.mul_(gain)


@torch.no_grad()
def test_a_gain_can_be_moved_into_what_it_feeds(anatomy: Anatomy) -> None:
    """What the list is for. A tied head is left out: it cannot change without the embedding."""
    model = copy.deepcopy(anatomy.model).double()
    model.config._experts_implementation = "eager"
    ours, ids = Anatomy.of(model), tokens(model)
    before = model(ids, use_cache=False).logits
    moved = [norm for norm in ours.norms() if not (ours.tied and norm.feeds[-1].role is Role.HEAD)]
    for norm in moved:
        layer = model.get_submodule(norm.path)
        shift = getattr(layer, "bias", None)
        for site in norm.feeds:
            scale_inputs(ours, site, layer.weight + norm.offset, shift)
        layer.weight.fill_(1 - norm.offset)
        if shift is not None:
            shift.zero_()
    # Norms compute in float32 inside, whatever the model's dtype.
    assert torch.allclose(before, model(ids, use_cache=False).logits, atol=1e-4)
    assert moved or ours.model.config.model_type == "olmo2"

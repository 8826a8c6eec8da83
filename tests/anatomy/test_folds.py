"""Folds: spelled out by hand for what differs between families, and never where code between the matrices bends."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from trimtab.anatomy import Anatomy
from trimtab.core.places import Fold, Gain, Role, Rows, Site
from trimtab.testing.tiny import tiny


def found(anatomy: Anatomy, block: int = 1) -> dict[str, list[str]]:
    return {fold.name: [site.role.value for site in fold.consumers] for fold in anatomy.folds() if fold.block == block}


def rows(anatomy: Anatomy, name: str) -> list[int]:
    (source,) = [fold.source for fold in anatomy.folds() if fold.name == name]
    assert isinstance(source, Rows)
    return source.rows.tolist()


def test_the_four_folds_of_a_gated_block_in_forward_order() -> None:
    anatomy = Anatomy.of(tiny("llama"))
    assert list(found(anatomy).items()) == [
        ("model.layers.1.input_layernorm", ["q", "k", "v"]),
        ("model.layers.1.self_attn.v_proj", ["o"]),
        ("model.layers.1.post_attention_layernorm", ["gate", "up"]),
        ("model.layers.1.mlp.up_proj", ["down"]),
    ]
    assert anatomy.folds() is anatomy.folds(), "asked once"


def test_query_heads_share_the_rows_of_their_values() -> None:
    by_head = [16 * group + i for group in (0, 0, 1, 1) for i in range(16)]
    assert rows(Anatomy.of(tiny("llama")), "model.layers.0.self_attn.v_proj") == by_head


def test_fused_projections_give_the_rows_that_are_values_or_up() -> None:
    phi3, neox = Anatomy.of(tiny("phi3")), Anatomy.of(tiny("gpt_neox"))
    assert rows(phi3, "model.layers.0.mlp.gate_up_proj") == [*range(128, 256)]
    values = rows(phi3, "model.layers.0.self_attn.qkv_proj")
    assert sorted(set(values)) == [*range(96, 128)]
    by_head = [48 * head + 32 + i for head in range(4) for i in range(16)]
    assert rows(neox, "gpt_neox.layers.0.attention.query_key_value") == by_head


def test_what_bends_does_not_fold() -> None:
    for family in ("gpt2", "gpt_neox"):  # GELU
        assert not [fold for fold in Anatomy.of(tiny(family)).folds() if fold.consumers[0].role is Role.DOWN]
    gpt_oss = found(Anatomy.of(tiny("gpt_oss")))  # a gate times (1 + a clipped up)
    assert gpt_oss["model.layers.1.post_attention_layernorm"] == ["router", *["gate_up"] * 4]
    assert not [name for name in gpt_oss if "experts" in name]


def test_a_rectifier_does_and_its_square_does_not() -> None:
    assert rows(Anatomy.of(tiny("opt")), "model.decoder.layers.1.fc1") == [*range(128)]
    for activation in ("relu", "relu2", "silu"):
        anatomy = Anatomy.of(tiny("phi3", hidden_act=activation, num_hidden_layers=1))
        assert rows(anatomy, "model.layers.0.mlp.gate_up_proj") == [*range(128, 256)], "up, though a rectified gate would do"


def test_closed_gates_are_not_mistaken_for_bends() -> None:
    """Among thousands of random numbers some close a gate so far that what is left underflows when it is squared."""
    for activation in ("silu", "gelu"):
        anatomy = Anatomy.of(tiny("llama", hidden_act=activation, intermediate_size=4000, num_hidden_layers=1))
        assert rows(anatomy, "model.layers.0.mlp.up_proj") == [*range(4000)]


def test_experts_fold_one_by_one_and_their_norm_serves_the_router_too() -> None:
    mixtral = found(Anatomy.of(tiny("mixtral")))
    assert mixtral["model.layers.1.post_attention_layernorm"] == ["router", *["gate_up"] * 4]
    assert [name for name in mixtral if "experts" in name] == [f"model.layers.1.mlp.experts.gate_up_proj.{i}" for i in range(4)]


def test_norms_behind_a_branch_and_before_the_head_do_not_fold() -> None:
    for family in ("olmo2", "gemma3"):
        names = [fold.name for fold in Anatomy.of(tiny(family)).folds() if isinstance(fold.source, Gain)]
        assert not [name for name in names if "post_" in name or name == "model.norm" or "q_norm" in name]
        assert bool(names) == (family == "gemma3")
    assert {f.source.offset for f in Anatomy.of(tiny("gemma3")).folds() if isinstance(f.source, Gain)} == {1.0}


def test_a_router_may_send_tokens_to_an_expert_that_was_not_seen() -> None:
    """An expert of its own module that read nothing in the survey: whether the norm feeds it is not known."""
    anatomy = Anatomy.of(tiny("mixtral", num_hidden_layers=1))
    norms = tuple(replace(norm, feeds=norm.feeds[:-1]) for norm in anatomy.norms())
    blind = replace(anatomy, _survey=replace(anatomy._survey, norms=norms))
    assert "model.layers.0.post_attention_layernorm" in found(anatomy, 0)
    assert "model.layers.0.post_attention_layernorm" not in found(blind, 0)
    assert "model.layers.0.input_layernorm" in found(blind, 0)


class Odd(nn.Module):
    """A feed-forward module that does something unheard of between its matrices."""

    def __init__(self, between: str):
        super().__init__()
        self.between = between
        self.gate_proj, self.up_proj = nn.Linear(64, 8), nn.Linear(64, 8)
        self.down_proj = nn.Linear(8, 64)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = torch.sigmoid(self.gate_proj(x)), self.up_proj(x)
        match self.between:
            case "reversed":
                return self.down_proj(gate * up.flip(-1))
            case "clipped":
                return self.down_proj(gate * up.clamp(-50, 50))
            case "shifted":
                return self.down_proj(gate * (up + 1e-2))
            case "mixed":
                return self.down_proj(torch.cat([(gate * up)[..., :7], (gate * up).sum(-1, keepdim=True)], -1))
        return self.down_proj(gate * up.abs())


def odd(between: str) -> Anatomy:
    model = tiny("llama", num_hidden_layers=1)
    model.model.layers[0].mlp = Odd(between)
    return Anatomy.of(model)


def test_unheard_of_layouts_are_read_from_the_code() -> None:
    assert rows(odd("reversed"), "model.layers.0.mlp.up_proj") == [7 - i for i in range(8)]
    assert rows(odd("magnitude"), "model.layers.0.mlp.up_proj") == [*range(8)]


@pytest.mark.parametrize("between", ["clipped", "shifted", "mixed"])
def test_what_is_almost_proportional_is_not(between: str) -> None:
    assert "model.layers.0.mlp.up_proj" not in found(odd(between), 0)


def test_pooling_is_over_the_columns_of_one_row() -> None:
    v, o = Site("v", Role.V, (3, 8), block=0), Site("o", Role.O, (8, 5), block=0)
    fold = Fold((o,), Rows(v, torch.tensor([0, 1, 0, 1, 2])))
    values = torch.tensor([1.0, 2.0, 3.0, 8.0, 7.0], dtype=torch.float64)
    assert fold.pooled(values).tolist() == [2, 5, 2, 5, 7]
    assert fold.pooled(values, "amax").tolist() == [3, 8, 3, 8, 7]
    assert fold.pooled(-values, "amax").tolist() == [-1, -2, -1, -2, -7]
    assert Fold((o,), Gain("norm")).pooled(values) is values

"""Couplings: index sets spelled out by hand, and two properties that define them, on every family."""

import copy

import pytest
import torch
import transformers
from torch import Tensor, nn

from trimtab.anatomy import Anatomy, Watch, branches
from trimtab.core.errors import ModelError
from trimtab.core.places import Coupling, Member, Role, Unit
from trimtab.testing.tiny import tiny, tokens


def shares(anatomy: Anatomy, name: str) -> dict[str, list[list[int]]]:
    (coupling,) = [c for c in anatomy.couplings() if c.name == name]
    return {member.site.role.value: member.indices.tolist() for member in coupling.members}


def span(*ranges: tuple[int, int]) -> list[int]:
    return [i for start, stop in ranges for i in range(start, stop)]


NEURON = [[i] for i in range(128)]


def test_llama_groups_two_query_heads_around_a_key_value_head() -> None:
    anatomy = Anatomy.of(tiny("llama"))
    heads, groups = [span((0, 32)), span((32, 64))], [span((0, 16)), span((16, 32))]
    assert shares(anatomy, "model.layers.2.self_attn.kv_group") == {"q": heads, "k": groups, "v": groups, "o": heads}
    assert shares(anatomy, "model.layers.2.mlp.neuron") == {"gate": NEURON, "up": NEURON, "down": NEURON}


def test_phi3_concatenates_queries_keys_and_values_and_gate_and_up() -> None:
    anatomy = Anatomy.of(tiny("phi3"))
    fused = [span((0, 32), (64, 80), (96, 112)), span((32, 64), (80, 96), (112, 128))]
    assert shares(anatomy, "model.layers.0.self_attn.kv_group") == {"qkv": fused, "o": [span((0, 32)), span((32, 64))]}
    assert shares(anatomy, "model.layers.0.mlp.neuron") == {"gate_up": [[i, i + 128] for i in range(128)], "down": NEURON}


def test_gpt2_concatenates_and_gpt_neox_interleaves_by_head() -> None:
    heads = [span((16 * h, 16 * h + 16)) for h in range(4)]
    concatenated = [span(*((part * 64 + 16 * h, part * 64 + 16 * h + 16) for part in range(3))) for h in range(4)]
    interleaved = [span((48 * h, 48 * h + 48)) for h in range(4)]
    assert shares(Anatomy.of(tiny("gpt2")), "transformer.h.3.attn.kv_group") == {"qkv": concatenated, "o": heads}
    assert shares(Anatomy.of(tiny("gpt_neox")), "gpt_neox.layers.3.attention.kv_group") == {"qkv": interleaved, "o": heads}
    assert shares(Anatomy.of(tiny("gpt2")), "transformer.h.3.mlp.neuron") == {"up": NEURON, "down": NEURON}


def test_opt_has_its_neurons_in_the_block_itself() -> None:
    anatomy = Anatomy.of(tiny("opt"))
    assert shares(anatomy, "model.decoder.layers.1.neuron") == {"up": NEURON, "down": NEURON}
    heads = [span((16 * h, 16 * h + 16)) for h in range(4)]
    found = shares(anatomy, "model.decoder.layers.1.self_attn.kv_group")
    assert found == {"q": heads, "k": heads, "v": heads, "o": heads}


def test_experts_pair_halves_in_mixtral_and_neighbours_in_gpt_oss() -> None:
    down = [[i] for i in range(32)]
    for index in range(4):
        name = f"model.layers.2.mlp.experts.{index}.neuron"
        halves, neighbours = [[i, i + 32] for i in range(32)], [[2 * i, 2 * i + 1] for i in range(32)]
        assert shares(Anatomy.of(tiny("mixtral")), name) == {"gate_up": halves, "down": down}
        assert shares(Anatomy.of(tiny("gpt_oss")), name) == {"gate_up": neighbours, "down": down}


def test_a_norm_over_the_full_width_leaves_one_unit() -> None:
    attention = [c for c in Anatomy.of(tiny("olmo2")).couplings() if c.unit is Unit.KV_GROUP]
    assert [c.units for c in attention] == [1, 1, 1, 1]
    assert attention[0].members[0].indices.tolist() == [list(range(64))]


def test_convolution_blocks_have_no_attention_coupling() -> None:
    groups = {c.block for c in Anatomy.of(tiny("lfm2")).couplings() if c.unit is Unit.KV_GROUP}
    assert groups == {1, 3}


def test_every_row_and_column_belongs_to_one_unit(anatomy: Anatomy) -> None:
    found = anatomy.couplings()
    assert found is anatomy.couplings(), "asked once"
    assert [c.block for c in found] == sorted(c.block for c in found)
    assert len({c.name for c in found}) == len(found)
    consumers = {Role.O, Role.DOWN}
    assert [c.consumer.site for c in found] == [s for s in anatomy.sites if s.role in consumers]
    for coupling in found:
        for member in coupling.members:
            rows, columns = member.site.shape
            assert member.indices.shape[0] == coupling.units
            assert sorted(member.indices.flatten().tolist()) == list(range(rows if member.axis == "rows" else columns))
            assert bool((member.indices.diff(dim=1) > 0).all())
        firsts = coupling.consumer.indices[:, 0]
        assert bool((firsts.diff() > 0).all()), "units are in the order of the consumer's columns"
        total = sum(m.site.shape[0] * m.site.shape[1] for m in coupling.members)
        assert coupling.cost * coupling.units == total


def pick(anatomy: Anatomy) -> list[tuple[Coupling, int]]:
    """A unit of every coupling of the last two blocks."""
    generator = torch.Generator().manual_seed(0)
    chosen = [c for c in anatomy.couplings() if c.block >= 2]
    return [(c, int(torch.randint(0, c.units, (1,), generator=generator))) for c in chosen]


def logits(model: nn.Module, ids: Tensor) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(ids, use_cache=False).logits
    return result


@torch.no_grad()
def change(anatomy: Anatomy, member: Member, indices: Tensor, value: float | Tensor) -> None:
    """Write into rows (and their biases) or columns of the live model."""
    module, site = anatomy.module(member.site), member.site
    held = module.weight if site.index is None else getattr(module, site.path.rpartition(".")[2])[site.index]
    matrix = held.T if site.transposed else held
    if member.axis == "columns":
        matrix[:, indices] = value
        return
    matrix[indices] = value
    if (bias := anatomy.bias(site)) is not None:
        bias[indices] = value if isinstance(value, float) else value[:, 0]


def test_a_unit_without_rows_is_a_unit_without_columns(anatomy: Anatomy) -> None:
    """Zeroing all that a unit's producers put out is the same to the model as zeroing what its consumer takes from it."""
    ids = tokens(anatomy.model)
    for coupling, unit in pick(anatomy):
        base, outputs = logits(anatomy.model, ids), []
        for axis in ("rows", "columns"):
            model = copy.deepcopy(anatomy.model)
            for member in coupling.members:
                if member.axis == axis:
                    change(Anatomy.of(model), member, member.indices[unit], 0.0)
            outputs.append(logits(model, ids))
        assert torch.allclose(*outputs, atol=2e-5), coupling.name
        if coupling.unit is Unit.KV_GROUP:
            assert (outputs[0] - base).abs().max() > 1e-4, "the unit matters, so the comparison does"


def test_a_unit_does_not_feel_the_others(anatomy: Anatomy) -> None:
    """New random rows everywhere outside of a unit leave the consumer's inputs at the unit's columns as they were."""
    ids, generator = tokens(anatomy.model), torch.Generator().manual_seed(1)
    for coupling, unit in pick(anatomy):
        inputs = []
        for disturbed in (False, True):
            ours = Anatomy.of(copy.deepcopy(anatomy.model))
            for member in coupling.members:
                if disturbed and member.axis == "rows" and coupling.units > 1:
                    others = torch.cat([member.indices[:unit], member.indices[unit + 1 :]]).flatten()
                    noise = torch.randn(len(others), member.site.shape[1], generator=generator)
                    change(ours, member, others, noise)
            seen: list[Tensor] = []
            with torch.no_grad(), Watch(ours, [coupling.consumer.site], lambda g, x, seen=seen: seen.append(x.clone())):
                ours.model(ids, use_cache=False)
            inputs.append(seen)
        columns = coupling.consumer.indices[unit]
        for before, after in zip(*inputs, strict=True):
            assert torch.allclose(before[:, columns], after[:, columns], atol=1e-5), coupling.name
            assert coupling.units == 1 or not torch.allclose(before, after, atol=1e-2)


@pytest.mark.parametrize("name", ["llama", "opt", "phi3", "mixtral", "gpt_neox", "qwen3"])
def test_pretrained_values_play_no_role(name: str) -> None:
    """A model of zeros, where nothing moves anything, has the couplings of its code."""
    model = tiny(name)
    expected = Anatomy.of(model).couplings()
    with torch.no_grad():
        for parameter in model.model.layers.parameters() if hasattr(model, "model") and name != "opt" else model.parameters():
            parameter.zero_()
    for a, b in zip(expected, Anatomy.of(model).couplings(), strict=True):
        assert all(torch.equal(x.indices, y.indices) for x, y in zip(a.members, b.members, strict=True))


@pytest.mark.parametrize("activation", ["relu", "relu2", "gelu", "silu"])
def test_dead_units_are_not_missed(activation: str) -> None:
    """Behind a rectified gate every other nudge of an `up` row meets silence."""
    anatomy = Anatomy.of(tiny("llama", hidden_act=activation, intermediate_size=500, num_hidden_layers=1))
    every = [[i] for i in range(500)]
    assert shares(anatomy, "model.layers.0.mlp.neuron") == {"gate": every, "up": every, "down": every}


def test_other_shapes_of_attention() -> None:
    def of(**overrides: int) -> list[int]:
        return [c.units for c in Anatomy.of(tiny("llama", **overrides)).couplings() if c.unit is Unit.KV_GROUP][:1]

    assert of(num_key_value_heads=1) == [1]
    assert of(num_key_value_heads=4) == [4]
    assert of(num_attention_heads=6, num_key_value_heads=3, hidden_size=96) == [3]
    assert of(head_dim=8) == [2]
    assert of(attention_bias=True, mlp_bias=True) == [2]


def test_every_kind_of_branch_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    real = branches.Bench

    def counted(owner: nn.Module, *args: object) -> object:
        asked.append(type(owner).__name__)
        return real(owner, *args)

    monkeypatch.setattr(branches, "Bench", counted)
    assert len(Anatomy.of(tiny("mixtral", num_hidden_layers=6)).couplings()) == 6 * 5
    assert sorted(asked) == ["MixtralAttention", "MixtralExperts"]


def test_blocks_of_different_widths_are_asked_apart() -> None:
    model = tiny("llama")
    mlp = model.model.layers[2].mlp
    for name in ("gate_proj", "up_proj"):
        setattr(mlp, name, nn.Linear(64, 96, bias=False))
    mlp.down_proj = nn.Linear(96, 64, bias=False)
    assert [c.units for c in Anatomy.of(model).couplings() if c.unit is Unit.NEURON] == [128, 128, 96, 128]


class Odd(nn.Module):
    """A feed-forward module that does something unheard of between its matrices."""

    def __init__(self, between: str):
        super().__init__()
        self.between = between
        self.gate_proj, self.up_proj = nn.Linear(64, 8), nn.Linear(64, 8)
        self.down_proj = nn.Linear(8, 64)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_proj(x), self.up_proj(x)
        if self.between == "reversed":
            return self.down_proj(torch.sigmoid(gate).flip(-1) * up)
        h = torch.sigmoid(gate) * up
        if self.between == "paired":
            return self.down_proj(h.unflatten(-1, (4, 2)).softmax(-1).flatten(-2))
        if self.between == "merged":
            return self.down_proj(torch.cat([h[..., :1] + h[..., 1:2], h[..., 1:]], -1))
        return self.down_proj(torch.cat([torch.ones_like(h[..., :1]), h[..., 1:]], -1))


def odd(between: str) -> Anatomy:
    model = tiny("llama", num_hidden_layers=1)
    model.model.layers[0].mlp = Odd(between)
    return Anatomy.of(model)


def test_unheard_of_layouts_are_read_from_the_code() -> None:
    up = [[i] for i in range(8)]
    found = shares(odd("reversed"), "model.layers.0.mlp.neuron")
    assert found == {"gate": [[7 - i] for i in range(8)], "up": up, "down": up}
    pairs = [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert shares(odd("paired"), "model.layers.0.mlp.neuron") == {"gate": pairs, "up": pairs, "down": pairs}


def test_what_has_no_units_is_refused() -> None:
    with pytest.raises(ModelError, match=r"model\.layers\.0\.mlp\.neuron: its units are of unequal size"):
        odd("merged").couplings()
    with pytest.raises(ModelError, match=r"some outputs never reach model\.layers\.0\.mlp\.down_proj"):
        odd("constant").couplings()


def test_a_branch_that_cannot_be_widened_is_refused_in_one_line() -> None:
    """Bloom's position biases are folded over batch and heads."""
    model = transformers.BloomForCausalLM(transformers.BloomConfig(hidden_size=64, n_layer=2, n_head=4, vocab_size=97)).eval()
    anatomy = Anatomy.of(model)
    assert len(anatomy.sites) == 2 * 4 + 2
    with pytest.raises(ModelError, match="does not run on a widened batch") as caught:
        anatomy.couplings()
    assert "\n" not in str(caught.value)

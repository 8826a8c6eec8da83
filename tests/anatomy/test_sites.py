"""Sites against the modules themselves: x @ weight.T + bias must be what the module computes."""

from collections import Counter

import pytest
import torch
from torch import nn

from trimtab.anatomy import Anatomy
from trimtab.core.errors import ModelError, UsageError
from trimtab.core.places import Role
from trimtab.testing.tiny import tiny

LLAMA = {Role.Q: 4, Role.K: 4, Role.V: 4, Role.O: 4, Role.GATE: 4, Role.UP: 4, Role.DOWN: 4}
FUSED = {Role.QKV: 4, Role.O: 4, Role.UP: 4, Role.DOWN: 4}
EXPERTS = {Role.Q: 4, Role.K: 4, Role.V: 4, Role.O: 4, Role.ROUTER: 4, Role.GATE_UP: 16, Role.DOWN: 16}
ROLES = {
    **dict.fromkeys(["llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text", "olmo2", "smollm3"], LLAMA),
    **dict.fromkeys(["gpt2", "gpt_neox"], FUSED),
    **dict.fromkeys(["mixtral", "gpt_oss"], EXPERTS),
    "phi3": {Role.QKV: 4, Role.O: 4, Role.GATE_UP: 4, Role.DOWN: 4},
    "opt": {Role.Q: 4, Role.K: 4, Role.V: 4, Role.O: 4, Role.UP: 4, Role.DOWN: 4},
    "lfm2": {Role.Q: 2, Role.K: 2, Role.V: 2, Role.O: 2, Role.OTHER: 4, Role.GATE: 4, Role.UP: 4, Role.DOWN: 4},
}


def test_roles_and_order(anatomy: Anatomy) -> None:
    counts = Counter(site.role for site in anatomy.sites)
    assert counts == {**ROLES[anatomy.model.config.model_type], Role.EMBED: 1, Role.HEAD: 1}
    assert anatomy.sites[0].role is Role.EMBED
    assert anatomy.sites[-1].role is Role.HEAD
    assert [s.block for s in anatomy.sites[1:-1]] == sorted(s.block for s in anatomy.sites[1:-1])
    assert len({site.name for site in anatomy.sites}) == len(anatomy.sites)
    assert len(anatomy.blocks) == 4


def test_every_matrix_is_a_site(anatomy: Anatomy) -> None:
    """Nothing is missed: the sites hold every number of the model but norms, biases, positions and convolutions."""
    model = anatomy.model
    inside = sum(s.shape[0] * s.shape[1] for s in anatomy.sites if not (anatomy.tied and s.role is Role.HEAD))
    left_out = ("wpe", "embed_positions", "conv.conv", "_bias")
    total = sum(p.numel() for n, p in model.named_parameters() if p.ndim > 1 and not any(x in n for x in left_out))
    assert inside == total


def test_orientation(anatomy: Anatomy) -> None:
    for site in anatomy.sites:
        module, weight, bias = anatomy.module(site), anatomy.weight(site).dense(), anatomy.bias(site)
        assert weight.shape == site.shape
        if not (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"):
            continue
        x = torch.randn(5, site.shape[1], generator=torch.Generator().manual_seed(0))
        expected = x @ weight.T + (0 if bias is None else bias)
        assert torch.allclose(module(x), expected, atol=1e-5)


def test_weights_are_views_of_the_live_parameters(anatomy: Anatomy) -> None:
    parameters = {p.untyped_storage().data_ptr() for p in anatomy.model.parameters()}
    for site in (site for site in anatomy.sites if not site.transposed):
        (stored,) = anatomy.weight(site).tensors().values()
        assert stored.untyped_storage().data_ptr() in parameters
        assert not stored.requires_grad


def test_tied_models_are_recognised(anatomy: Anatomy) -> None:
    assert anatomy.tied == anatomy.model.config.tie_word_embeddings
    embed, head = anatomy.sites[0], anatomy.sites[-1]
    assert embed.shape == head.shape == (97, 64)
    assert torch.equal(anatomy.weight(embed).dense(), anatomy.weight(head).dense()) == anatomy.tied


@pytest.mark.parametrize("tie", [True, False])
def test_a_family_can_be_tied_or_not(tie: bool) -> None:
    assert Anatomy.of(tiny("llama", tie_word_embeddings=tie)).tied is tie


def test_stages(anatomy: Anatomy) -> None:
    family = anatomy.model.config.model_type
    attention = ["qkv", "o"] if family in ("gpt2", "gpt_neox", "phi3") else ["q k v", "o"]
    if family in ("mixtral", "gpt_oss"):
        feed_forward = ["router", " ".join(["gate_up"] * 4), " ".join(["down"] * 4)]
    else:
        first = {"phi3": "gate_up", "gpt2": "up", "gpt_neox": "up", "opt": "up"}.get(family, "gate up")
        feed_forward = [first, "down"]
    for block in range(4):
        mixer = ["other", "other"] if family == "lfm2" and block % 2 == 0 else attention
        stages = anatomy.stages(block)
        assert [" ".join(site.role for site in stage) for stage in stages] == mixer + feed_forward
        assert tuple(site for stage in stages for site in stage) == anatomy.block_sites(block)


def test_a_parallel_block_shares_one_input() -> None:
    """GPT-NeoX with parallel residuals and one norm would; two norms must not be taken for one."""
    stages = Anatomy.of(tiny("gpt_neox", use_parallel_residual=True)).stages(0)
    assert [len(stage) for stage in stages] == [1, 1, 1, 1]


def test_lookup_by_name_and_pattern() -> None:
    anatomy = Anatomy.of(tiny("mixtral", num_hidden_layers=12))
    assert anatomy.site("lm_head").role is Role.HEAD
    assert {site.block for site in anatomy.match("layers.1")} == {1}
    assert [site.index for site in anatomy.match("layers.1.*.experts.down_proj")] == [0, 1, 2, 3]
    assert len(anatomy.match("down_proj.2")) == 12
    assert anatomy.site("model.layers.3.mlp.experts.down_proj.2").index == 2
    with pytest.raises(UsageError, match=r"did you mean 'model\.layers\.3\.self_attn\.q_proj'"):
        anatomy.site("model.layers.3.self_attn.qproj")
    with pytest.raises(UsageError, match="did you mean 'q_proj'"):
        anatomy.match("layers.1.*.qproj")


def test_the_survey_leaves_the_model_as_it_was() -> None:
    model = tiny("mixtral")
    model.train()
    model.model.layers[0].eval()
    before = {name: p.clone() for name, p in model.named_parameters()}
    Anatomy.of(model).couplings()
    assert model.training
    assert not model.model.layers[0].mlp.training
    assert model.config._experts_implementation != "eager"
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", ["llama", "mixtral", "gpt_oss", "gpt2", "gemma3"])
def test_half_precision_reads_the_same(name: str) -> None:
    model = tiny(name)
    whole = Anatomy.of(model)
    half = Anatomy.of(model.bfloat16())
    assert half.sites == whole.sites
    assert half.norms() == whole.norms()
    assert all(half.stages(block) == whole.stages(block) for block in range(4))
    assert half.weight(half.sites[1]).tensors()["weight"].dtype == torch.bfloat16
    for a, b in zip(half.couplings(), whole.couplings(), strict=True):
        assert a.name == b.name
        assert all(torch.equal(x.indices, y.indices) for x, y in zip(a.members, b.members, strict=True))


def test_an_anatomy_can_be_made_in_inference_mode() -> None:
    with torch.inference_mode():
        assert len(Anatomy.of(tiny("llama")).couplings()) == 8


class Config:
    num_hidden_layers = 2


class Twice(nn.Module):
    config = Config()

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)]) for _ in range(2))


class Headless(nn.Module):
    config = Config()

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        (nn.Linear(3, 3), "has no config"),
        (Twice(), r"several lists of 2 blocks \(a, b\)"),
        (Headless(), "has no embed matrix"),
    ],
)
def test_what_is_not_a_language_model_is_refused_in_one_line(model: nn.Module, complaint: str) -> None:
    with pytest.raises(ModelError, match=complaint) as caught:
        Anatomy.of(model)
    assert "\n" not in str(caught.value)


def test_a_config_that_does_not_fit_its_model_is_refused() -> None:
    model = tiny("llama")
    model.config.num_hidden_layers = 7
    with pytest.raises(ModelError, match="no list of 7 blocks"):
        Anatomy.of(model)


def test_a_model_without_head_is_refused() -> None:
    with pytest.raises(ModelError, match="no head matrix; load it as a causal language model"):
        Anatomy.of(tiny("llama").model)


def test_a_model_that_does_not_run_is_refused() -> None:
    model = tiny("llama")
    model.model.layers[2].mlp.up_proj = nn.Linear(63, 128)
    with pytest.raises(ModelError, match="does not run on 8 tokens") as caught:
        Anatomy.of(model)
    assert "\n" not in str(caught.value)

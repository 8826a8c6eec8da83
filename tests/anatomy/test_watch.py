"""What Watch shows, against plain hooks and against the routing itself."""

import pytest
import torch
from torch import Tensor, nn

from trimtab.anatomy import Anatomy, Watch
from trimtab.core.errors import UsageError
from trimtab.core.places import Role, Site
from trimtab.testing.tiny import tiny, tokens

Seen = dict[tuple[Site, ...], list[Tensor]]


def watched(anatomy: Anatomy, sites: tuple[Site, ...], ids: Tensor, stop: bool = False) -> Seen:
    seen: Seen = {}
    with torch.no_grad(), Watch(anatomy, sites, lambda group, x: seen.setdefault(group, []).append(x.clone()), stop=stop):
        anatomy.model(ids, use_cache=False)
    return seen


def hooked(anatomy: Anatomy, ids: Tensor) -> dict[str, Tensor]:
    """The naive reference: one hook per module that is a site."""
    found: dict[str, Tensor] = {}
    handles = [
        anatomy.module(site).register_forward_pre_hook(lambda m, args, path=site.path: found.__setitem__(path, args[0]))
        for site in anatomy.sites
        if site.index is None
    ]
    with torch.no_grad():
        anatomy.model(ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return found


def clean(model: nn.Module) -> bool:
    return not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_all_inputs_are_seen_once_per_group(anatomy: Anatomy) -> None:
    model, ids = anatomy.model, tokens(anatomy.model, batch=2, length=6)
    implementation = getattr(model.config, "_experts_implementation", None)
    # The loop over experts and the grouped kernel differ in rounding.
    model.config._experts_implementation = "eager"
    reference = hooked(anatomy, ids)
    model.config._experts_implementation = implementation
    seen = watched(anatomy, anatomy.sites[1:], ids)
    groups = [group for group in seen if group[0].index is None]
    assert sorted(s.name for g in groups for s in g) == sorted(s.name for s in anatomy.sites[1:] if s.index is None)
    for group in groups:
        assert len(seen[group]) == 1
        for site in group:
            assert torch.equal(seen[group][0], reference[site.path].reshape(-1, site.shape[1]))
    assert {g for g in groups if g[0].block == 1} == {s for s in anatomy.stages(1) if s[0].index is None}
    assert clean(model)
    assert getattr(model.config, "_experts_implementation", None) == implementation


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_experts_see_exactly_the_tokens_routed_to_them(name: str) -> None:
    anatomy = Anatomy.of(tiny(name))
    experts = anatomy.blocks[1].mlp.experts
    routing: list[tuple[Tensor, ...]] = []
    handle = experts.register_forward_pre_hook(lambda m, args: routing.append(args))
    sites = anatomy.match("layers.1.mlp.experts")
    seen = watched(anatomy, sites, tokens(anatomy.model, batch=1, length=5))
    handle.remove()
    hidden, chosen = routing[0][0], routing[0][1]
    reached = 0
    for index in range(4):
        up, down = (anatomy.site(f"model.layers.1.mlp.experts.{part}.{index}") for part in ("gate_up_proj", "down_proj"))
        _, token = torch.where((chosen == index).T)
        if not len(token):
            assert (up,) not in seen
            assert (down,) not in seen
            continue
        reached += len(token)
        assert torch.equal(seen[up,][0], hidden[token])
        bias = anatomy.bias(up)
        inner = experts._apply_gate(hidden[token] @ anatomy.weight(up).dense().T + (0 if bias is None else bias))
        assert torch.allclose(seen[down,][0], inner, atol=1e-5)
    assert reached == 10


def test_an_expert_without_tokens_is_not_seen() -> None:
    anatomy = Anatomy.of(tiny("mixtral"))
    seen = watched(anatomy, anatomy.match("experts"), tokens(anatomy.model, batch=1, length=1))
    assert len(seen) == 4 * 2 * 2, "one token reaches two experts per block"
    assert all(x.shape[0] == 1 for (x,) in seen.values())


def test_only_what_is_watched_is_seen() -> None:
    anatomy = Anatomy.of(tiny("llama"))
    k, up, head = (anatomy.site(n) for n in ("model.layers.2.self_attn.k_proj", "model.layers.0.mlp.up_proj", "lm_head"))
    seen = watched(anatomy, (head, k, up), tokens(anatomy.model))
    assert list(seen) == [(up,), (k,), (head,)]


def test_no_copy_is_made_and_nothing_requires_grad() -> None:
    anatomy, addresses = Anatomy.of(tiny("llama")), []
    q = anatomy.site("model.layers.0.self_attn.q_proj")
    handle = anatomy.module(q).register_forward_pre_hook(lambda m, args: addresses.append(args[0].data_ptr()))
    shown: list[Tensor] = []
    with Watch(anatomy, [q], lambda group, x: shown.append(x)):
        anatomy.model(tokens(anatomy.model), use_cache=False)
    handle.remove()
    assert shown[0].data_ptr() == addresses[0]
    assert not shown[0].requires_grad
    assert shown[0].shape == (24, 64)


@pytest.mark.parametrize(
    ("name", "pattern", "later"),
    [
        ("llama", "layers.1.*.o_proj", "layers.1.mlp.gate_proj"),
        ("gpt2", "h.1.attn.c_proj", "h.1.mlp.c_fc"),
        ("mixtral", "layers.1.mlp.experts.gate_up_proj", "layers.2.self_attn.q_proj"),
    ],
)
def test_stop_cuts_the_forward_pass_off(name: str, pattern: str, later: str) -> None:
    anatomy = Anatomy.of(tiny(name))
    reached: list[str] = []
    owners = {anatomy.match(p)[0]: p for p in (pattern, later)}
    handles = [anatomy.module(s).register_forward_hook(lambda *a, p=p: reached.append(p)) for s, p in owners.items()]
    sites, ids = anatomy.match(pattern), tokens(anatomy.model)
    whole = watched(anatomy, sites, ids)
    assert later in reached
    reached.clear()
    cut = watched(anatomy, sites, ids, stop=True)
    for handle in handles:
        handle.remove()
    assert later not in reached
    assert cut.keys() == whole.keys()
    assert all(torch.equal(a, b) for group in cut for a, b in zip(cut[group], whole[group], strict=True))
    assert clean(anatomy.model)


def test_stop_waits_for_everything_and_a_watch_can_be_entered_again() -> None:
    anatomy = Anatomy.of(tiny("llama"))
    names: list[str] = []
    sites = [anatomy.site(f"model.layers.{i}.mlp.down_proj") for i in (2, 0)]
    watch = Watch(anatomy, sites, lambda group, x: names.append(group[0].name), stop=True)
    for _ in range(2):
        with watch:
            anatomy.model(tokens(anatomy.model), use_cache=False)
            raise AssertionError("the forward pass should have ended the block")
    assert names == [f"model.layers.{i}.mlp.down_proj" for i in (0, 2)] * 2


def test_an_error_passes_through_and_leaves_nothing_behind() -> None:
    model = tiny("mixtral")
    anatomy, before = Anatomy.of(model), model.config._experts_implementation

    def see(group: tuple[Site, ...], x: Tensor) -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"), Watch(anatomy, anatomy.match("layers.3"), see, stop=True):
        model(tokens(model), use_cache=False)
    assert clean(model)
    assert model.config._experts_implementation == before
    assert torch.overrides._len_torch_function_stack() == 0


def test_an_embedding_cannot_be_watched() -> None:
    anatomy = Anatomy.of(tiny("llama"))
    assert anatomy.sites[0].role is Role.EMBED
    with pytest.raises(UsageError, match="token ids"):
        Watch(anatomy, anatomy.sites[:1], lambda group, x: None)

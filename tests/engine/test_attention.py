"""The attention that tokens draw is what the model itself says it pays, in every family that pays any."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trimtab.anatomy import Anatomy
from trimtab.core.errors import CalibrationError, ModelError
from trimtab.core.places import Role
from trimtab.engine.attention import Attention, probabilities
from trimtab.engine.sweep import Stream
from trimtab.stats import Gram, weighed_gram
from trimtab.testing.tiny import ARCHITECTURES, tiny, tokens

ATTENTION = weighed_gram("attention", 0.05)
PASSAGE = weighed_gram("change", 0.05)


def by_the_model(family: str, ids: Tensor) -> list[Tensor]:
    """[windows, length] of every block, from the probabilities that the model gives when asked for them."""
    model = tiny(family)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        given = model(ids, use_cache=False, output_attentions=True).attentions
    return [block[..., : ids.shape[1]].sum((1, 2)) for block in given]


@pytest.mark.parametrize("family", [f for f in ARCHITECTURES if f != "lfm2"])
def test_drawn_is_what_the_model_says(family: str) -> None:
    """Grouped queries, sliding windows, sinks, capped scores and attention that is written out."""
    model = tiny(family)
    ids = tokens(model, batch=2, length=24)
    stream = Stream(Anatomy.of(model), [ids])
    for block, expected in enumerate(by_the_model(family, ids)):
        with Attention(2, 24) as attention:
            leaving = stream.drive(block, 0)
        assert attention.drawn is not None
        assert torch.allclose(attention.drawn, expected, atol=1e-4), block
        assert torch.equal(leaving, stream.drive(block, 0))
        stream.hidden[0] = leaving


@pytest.mark.parametrize("kind", ["causal", "boolean", "added", "grouped", "scaled"])
def test_probabilities_are_those_behind_the_attention(kind: str) -> None:
    draw = torch.Generator().manual_seed(0)
    query, key = torch.randn(4, 7, 8, generator=draw), torch.randn(2 if kind == "grouped" else 4, 7, 8, generator=draw)
    value = torch.randn(key.shape, generator=draw)
    boolean = torch.ones(7, 7, dtype=torch.bool).tril() & (torch.rand(7, 7, generator=draw) < 0.7) | torch.eye(7).bool()
    mask = {"boolean": boolean, "added": torch.randn(4, 7, 7, generator=draw)}.get(kind)
    scale = 0.5 if kind == "scaled" else None
    found = probabilities(query, key, mask, kind == "causal", scale) @ value.repeat_interleave(4 // len(key), 0)
    called = {"attn_mask": mask, "is_causal": kind == "causal", "scale": scale, "enable_gqa": kind == "grouped"}
    assert torch.allclose(found, F.scaled_dot_product_attention(query, key, value, **called), atol=1e-5)


@pytest.mark.parametrize("statistic", [ATTENTION, PASSAGE], ids=["attended", "passage"])
def test_statistics_on_tokens_see_what_the_block_makes_of_them(statistic: type) -> None:
    """Over two batches and all stages of a block; the plain gram beside it is what it is alone."""
    model = tiny("llama")
    shown = [tokens(model, batch=2, length=24, seed=s) for s in (1, 2)]
    anatomy = Anatomy.of(model)
    sites = anatomy.block_sites(0)
    seen = Stream(anatomy, shown).collect(0, dict.fromkeys(sites, (statistic, Gram))).sites
    alone = Stream(anatomy, shown).collect(0, dict.fromkeys(sites, (Gram,))).sites
    stream, drawn = Stream(anatomy, shown), [by_the_model("llama", ids)[0] for ids in shown]
    state = {site: statistic.start(site.shape, shown[0].device) for site in sites}
    for batch in range(2):
        inputs, entering = stream.step(0, batch, sites), Stream(anatomy, shown).hidden[batch]
        about = (drawn[batch],) if statistic.on == "attended" else (entering, stream.hidden[batch])
        state = {site: statistic.update(state[site], inputs[site], *about) for site in sites}
    for site in sites:
        expected = statistic.finish(state[site])
        assert torch.allclose(seen[site][statistic], expected, atol=1e-5 * float(expected.abs().max())), site.name
        assert torch.equal(seen[site][Gram], alone[site][Gram])
        assert not torch.allclose(seen[site][Gram], seen[site][statistic], rtol=1e-2)


def test_what_is_seen_late_is_kept_for_this_batch_only() -> None:
    """The stream does not move, and only the matrices of the first stage are asked for: the block still runs to its end."""
    model = tiny("llama")
    anatomy, shown = Anatomy.of(model), [tokens(model, batch=2, length=24, seed=s) for s in (1, 2)]
    first = anatomy.stages(0)[0]
    stream = Stream(anatomy, shown)
    before = [h.clone() for h in stream.hidden]
    found = [stream.collect(0, dict.fromkeys(first, (ATTENTION,))).sites[first[0]][ATTENTION] for _ in range(2)]
    assert torch.equal(*found)
    assert all(torch.equal(a, b) for a, b in zip(before, stream.hidden, strict=True))


def test_a_block_without_attention_is_told_apart_from_one_that_draws_nothing() -> None:
    anatomy = Anatomy.of(model := tiny("lfm2"))
    stream = Stream(anatomy, [tokens(model, batch=2, length=24)])
    for block, kind in enumerate(model.config.layer_types):
        needs = dict.fromkeys(anatomy.block_sites(block), (ATTENTION,))
        if kind == "full_attention":
            assert all(bool(stats[ATTENTION].any()) for stats in stream.collect(block, needs).sites.values())
        else:
            with pytest.raises(ModelError, match="shows no attention"):
                stream.collect(block, needs)
        stream.advance(block)


def test_experts_that_see_some_tokens_cannot_be_weighed() -> None:
    anatomy = Anatomy.of(model := tiny("mixtral"))
    expert = next(s for s in anatomy.block_sites(0) if s.index is not None and s.role is not Role.ROUTER)
    with pytest.raises(CalibrationError, match=r"which ones is not known"):
        Stream(anatomy, [tokens(model, batch=2, length=24)]).collect(0, {expert: (ATTENTION,)})
    query = next(s for s in anatomy.block_sites(0) if s.role is Role.Q)
    seen = Stream(anatomy, [tokens(model, batch=2, length=24)]).collect(0, {query: (ATTENTION,), expert: (Gram,)}).sites
    assert bool(seen[query][ATTENTION].any())
    assert bool(seen[expert][Gram].any())

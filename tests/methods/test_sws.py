"""SWS: one set of matrices for a run of blocks learns from all of its uses, and models of any depth begin with it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trimtab.anatomy import Anatomy
from trimtab.core.edits import Arrange
from trimtab.core.errors import ModelError, UsageError
from trimtab.core.kinds import Seen
from trimtab.core.recipe import Recipe
from trimtab.engine.apply import apply
from trimtab.engine.teaching import learning
from trimtab.methods import Sws, SwsExpand
from trimtab.tensors.runs import divided, runs, spread
from trimtab.testing.roundtrip import logits, ran, reopened
from trimtab.testing.tiny import tiny


def begun(method: Sws, model: torch.nn.Module):
    anatomy = Anatomy.of(model)
    return anatomy, method.begin(anatomy, Seen({}, torch.Generator().manual_seed(0)))


def numbers(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "gemma2"])
def test_what_is_stored_says_what_was_learned(family):
    model = tiny(family)
    anatomy, pupil = begun(Sws(stages=3), model)
    with torch.no_grad():
        for number, parameter in enumerate(pupil.parameters()):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    with learning(anatomy, pupil), torch.no_grad():
        before = logits(model)
    apply(anatomy, pupil.edits())
    torch.testing.assert_close(logits(model), before, rtol=1e-5, atol=1e-5)
    shared = sum(s.shape[0] * s.shape[1] for s in anatomy.block_sites(1)) if family in ("llama", "gemma2") else 0
    assert numbers(tiny(family)) - numbers(model) == shared  # where there are biases, each block keeps its own
    assert torch.equal(logits(reopened(model)), logits(model))


def test_as_many_stages_as_blocks_are_the_model():
    model = tiny("llama")
    before = logits(model)
    anatomy, pupil = begun(Sws(stages=4), model)
    with learning(anatomy, pupil), torch.no_grad():
        assert torch.equal(logits(model), before)


def test_gradients_of_all_uses_add_up():
    grads = {}
    for stages in (2, 4):
        model = tiny("llama")
        anatomy = Anatomy.of(model)
        with torch.no_grad():
            for site in anatomy.sites:
                if site.block in (0, 2):  # as the middle block of their stages
                    twin = site.path.replace(f"layers.{site.block}", f"layers.{site.block + 1}")
                    model.get_submodule(site.path).weight.copy_(model.get_submodule(twin).weight)
        anatomy, pupil = begun(Sws(stages=stages), model)
        with learning(anatomy, pupil), torch.enable_grad():
            logits.__wrapped__(model).square().mean().backward()
        grads[stages] = {site.path: learner.weight.grad.clone() for site, learner in pupil.stands().items()}
        assert sum(p.numel() for p in pupil.parameters()) + 8 * 64 == Sws(stages=stages).trained(anatomy)
    apart = {path: grads[4][path] + grads[4][path.replace("layers.2", "layers.3")] for path in grads[4] if "layers.2" in path}
    assert len(apart) == 7
    for path, expected in apart.items():
        torch.testing.assert_close(grads[2][path], expected, rtol=1e-4, atol=1e-7)


def test_random_numbers_have_the_spread_of_the_teachers():
    anatomy, pupil = begun(Sws(start="random"), tiny("llama"))
    for site, learner in pupil.stands().items():
        there = anatomy.weight(site).dense()
        assert not torch.equal(learner.weight, there)
        assert 0.7 < float(learner.weight.detach().std() / there.std()) < 1.4


@pytest.mark.parametrize(("family", "depth"), [("llama", 3), ("llama", 9), ("gemma2", 6), ("qwen2", 5)])
def test_any_depth_begins_with_what_stages_have_learned(family, depth):
    model, bench = ran(family, Recipe.of(f"sws(stages=3, steps=2, windows=2) -> sws_expand(depth={depth})"))
    assert len(Anatomy.of(model).blocks) == model.config.num_hidden_layers == depth
    counts = divided(depth, [1, 1, 2])
    stages = (range(1), range(1, 2), range(2, 4))
    assert bench.receipts[1].notes["blocks"] == [b for stage, n in zip(stages, counts, strict=True) for b in spread(stage, n)]
    assert len({p.data_ptr() for p in model.parameters()}) == len(list(model.parameters()))
    assert torch.equal(logits(reopened(model)), logits(model))
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits[:, -1]
        begin = model(ids[:, :4], use_cache=True)
        steps = model(ids[:, 4:], past_key_values=begin.past_key_values, use_cache=True).logits[:, -1]
    torch.testing.assert_close(steps, whole, rtol=1e-4, atol=1e-4)


def test_the_depth_that_is_there_is_the_same_model():
    kept, _ = ran("llama", Recipe.of("sws(stages=2, steps=2, windows=2)"))
    again, _ = ran("llama", Recipe.of("sws(stages=2, steps=2, windows=2) -> sws_expand(depth=4)"))
    assert torch.equal(logits(kept), logits(again))
    assert numbers(again) > numbers(kept)


def test_what_was_expanded_learns_on_in_its_own_ways():
    model, bench = ran("llama", Recipe.of("sws_expand(depth=6) -> recover(rank=0, steps=6, windows=4, learning_rate=0.003)"))
    first, second = (Anatomy.of(model).block_sites(block)[0] for block in (0, 1))
    assert bench.receipts[0].notes["blocks"] == [0, 0, 1, 1, 2, 3]
    assert not torch.equal(Anatomy.of(model).weight(first).dense(), Anatomy.of(model).weight(second).dense())
    assert bench.receipts[1].notes["last_loss"] < bench.receipts[1].notes["first_loss"]


def test_blocks_change_places():
    model = tiny("llama")
    before = [block.mlp.up_proj.weight.clone() for block in model.model.layers]
    apply(Anatomy.of(model), [Arrange((2, 0, 2))])
    now = [block.mlp.up_proj.weight for block in model.model.layers]
    assert all(torch.equal(value, before[block]) for value, block in zip(now, (2, 0, 2), strict=True))
    assert [block.self_attn.layer_idx for block in model.model.layers] == [0, 1, 2]
    assert now[0] is not now[2]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 30))
def test_blocks_are_split_in_proportion(sizes, more):
    length = len(sizes) + more
    counts = divided(length, sizes)
    assert sum(counts) == length
    assert min(counts) >= 1
    assert divided(sum(sizes), sizes) == sizes
    shares = [length * size / sum(sizes) for size in sizes]
    if min(shares) >= 1:
        assert all(abs(count - share) < 1 for count, share in zip(counts, shares, strict=True))
    assert [spread(range(3, 3 + size), size) for size in sizes] == [list(range(3, 3 + size)) for size in sizes]
    assert [b for run in runs(length, len(sizes)) for b in run] == list(range(length))
    lengths = [len(run) for run in runs(length, len(sizes))]
    assert max(lengths) - min(lengths) <= 1


def test_bad_requests_are_named():
    with pytest.raises(UsageError, match="sws: the model has 4 blocks, which are no 5 stages; use less"):
        begun(Sws(stages=5), tiny("llama"))
    with pytest.raises(ModelError, match="sws: block 0 is not made as block 1 is; use more stages"):
        begun(Sws(stages=2), tiny("lfm2"))
    with pytest.raises(ModelError, match=r"sws: block . has experts"):
        begun(Sws(), tiny("mixtral"))
    with pytest.raises(UsageError, match="sws_expand: the model has 4 stages; depth=3 leaves some out, use shortgpt"):
        SwsExpand(depth=3).rewrite(Anatomy.of(tiny("llama")), Seen({}))

"""Block by block is the whole model, bit for bit, and what is seen on the way is what hooks on the whole model see."""

import copy

import pytest
import torch
from torch import Tensor

from trimtab.anatomy import Anatomy
from trimtab.core.places import Role, Site
from trimtab.engine.sweep import Stream
from trimtab.stats import BlockCosine, Gram, InputNorm, Moments
from trimtab.testing.tiny import ARCHITECTURES, tiny, tokens

LLAMA_LIKE = ("llama", "qwen3", "phi3", "gpt2", "gemma3", "mixtral", "lfm2", "opt")


def batches(model, count: int = 2, batch: int = 2) -> list[Tensor]:
    return [tokens(model, batch=batch, length=12, seed=seed) for seed in range(count)]


@torch.no_grad()
def whole(model, ids: Tensor) -> Tensor:
    return model(ids, use_cache=False).logits


def streamed(model, shown: list[Tensor]) -> list[Tensor]:
    stream = Stream(Anatomy.of(model), shown)
    for block in range(len(stream.anatomy.blocks)):
        stream.advance(block)
    return [stream.logits(i, ids) for i, ids in enumerate(shown)]


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_logits_are_those_of_the_whole_model_bit_for_bit(family: str) -> None:
    model = tiny(family)
    shown = batches(model)
    for found, ids in zip(streamed(model, shown), shown, strict=True):
        assert torch.equal(found, whole(model, ids))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ARCHITECTURES)
def test_half_precision_weights_compute_in_float32(family: str, dtype: torch.dtype) -> None:
    """Bit for bit what the model cast to float32 says, from the embedding on; and the weights are the very same afterwards."""
    half = tiny(family).to(dtype)
    raised = copy.deepcopy(half).float()
    before = {name: p.data_ptr() for name, p in half.named_parameters()}
    shown = batches(half)
    for found, ids in zip(streamed(half, shown), shown, strict=True):
        assert found.dtype == torch.float32
        assert torch.equal(found, whole(raised, ids))
    assert {name: p.data_ptr() for name, p in half.named_parameters()} == before
    assert all(p.dtype == dtype for p in half.parameters())


def inputs_by_hooks(model, sites: list[Site], shown: list[Tensor]) -> dict[Site, Tensor]:
    """[tokens, in] of every plain site, by a hook on its module."""
    found: dict[Site, list[Tensor]] = {s: [] for s in sites}
    handles = [
        model.get_submodule(s.path).register_forward_pre_hook(
            lambda module, args, s=s: found[s].append(args[0].detach().flatten(0, -2).clone())
        )
        for s in sites
    ]
    for ids in shown:
        whole(model, ids)
    for handle in handles:
        handle.remove()
    return {s: torch.cat(x) for s, x in found.items()}


def collected(model, needs, shown, of_block=(), advance=True):
    anatomy = Anatomy.of(model)
    stream, sites, blocks = Stream(anatomy, shown), {}, []
    for block in range(len(anatomy.blocks)):
        wanted = dict.fromkeys(anatomy.block_sites(block), needs)
        seen = stream.collect(block, wanted, of_block, advance=advance)
        sites |= seen.sites
        blocks.append(seen.block)
        if not advance:
            stream.advance(block)
    return sites, blocks


@pytest.mark.parametrize("family", LLAMA_LIKE)
def test_statistics_are_those_of_hooks(family: str) -> None:
    model = tiny(family)
    shown = batches(model)
    sites, _ = collected(model, (Gram, InputNorm, Moments), shown)
    plain = [s for s in sites if s.index is None]
    assert plain
    for site, x in inputs_by_hooks(model, plain, shown).items():
        x = x.double()
        scale = float(x.square().mean())
        assert torch.allclose(sites[site][Gram].double(), x.T @ x / len(x), atol=1e-5 * scale, rtol=1e-4), site.name
        assert torch.allclose(sites[site][InputNorm].double(), x.square().mean(0).sqrt(), rtol=1e-4), site.name
        mean, variance = sites[site][Moments]
        assert torch.allclose(mean, x.mean(0), atol=1e-5), site.name
        assert torch.allclose(variance, x.var(0, correction=0), rtol=1e-3, atol=1e-6), site.name


def test_experts_see_the_tokens_that_are_routed_to_them() -> None:
    """Recomputed from the router's own choice."""
    model = tiny("mixtral")
    shown = batches(model)
    anatomy = Anatomy.of(model)
    sites, _ = collected(model, (Gram,), shown)
    router = next(s for s in anatomy.block_sites(1) if s.role is Role.ROUTER)
    x = inputs_by_hooks(model, [router], shown)[router]
    gate = anatomy.weight(router).dense()
    chosen = (x @ gate.T).topk(2, dim=-1).indices
    for site in anatomy.block_sites(1):
        if site.index is not None and site.role in (Role.GATE_UP, Role.GATE, Role.UP):
            routed = x[(chosen == site.index).any(-1)]
            expected = routed.T @ routed / max(len(routed), 1)
            assert torch.allclose(sites[site][Gram], expected, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_block_statistics_are_those_of_hooks(family: str) -> None:
    model = tiny(family)
    shown = batches(model)
    _, blocks = collected(model, (), shown, of_block=(BlockCosine,))
    anatomy, pairs = Anatomy.of(model), [[] for _ in blocks]
    for number, block in enumerate(anatomy.blocks):

        def note(module, args, kwargs, output, number=number):
            entering = args[0] if args else kwargs["hidden_states"]
            leaving = output[0] if isinstance(output, tuple) else output
            pairs[number].append((entering.flatten(0, -2), leaving.flatten(0, -2)))

        block.register_forward_hook(note, with_kwargs=True)
    for ids in shown:
        whole(model, ids)
    for block, seen in zip(blocks, pairs, strict=True):
        entering, leaving = (torch.cat(t).double() for t in zip(*seen, strict=True))
        expected = ((entering * leaving).sum(1) / (entering.norm(dim=1) * leaving.norm(dim=1))).mean()
        assert block[BlockCosine] == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("family", ["llama", "mixtral", "gpt2", "lfm2"])
def test_stopping_early_changes_nothing(family: str) -> None:
    model = tiny(family)
    shown = batches(model)
    (one, _), (other, _) = (collected(model, (Gram, Moments), shown, advance=a) for a in (True, False))
    assert one.keys() == other.keys()
    for site, stats in one.items():
        assert all(torch.equal(stats[k], other[site][k]) for k in stats)


@pytest.mark.parametrize("family", ["llama", "mixtral", "gpt_oss"])
def test_batching_changes_nothing_but_rounding(family: str) -> None:
    model = tiny(family)
    four = tokens(model, batch=4, length=12)
    (one, _), (other, _) = (collected(model, (Gram,), list(b)) for b in (four.split(4), four.split(1)))
    for site, stats in one.items():
        scale = stats[Gram].diagonal().mean()
        assert torch.allclose(stats[Gram], other[site][Gram], atol=1e-4 * scale), site.name


def test_sites_of_one_stage_share_one_statistic() -> None:
    anatomy = Anatomy.of(model := tiny("llama"))
    sites, _ = collected(model, (Gram,), batches(model))
    for stage in anatomy.stages(0):
        assert len({id(sites[s][Gram]) for s in stage if s in sites}) == 1


def test_computing_in_bfloat16_sees_nearly_the_same_and_touches_no_weight() -> None:
    model = tiny("llama")
    before = {name: p.clone() for name, p in model.named_parameters()}
    anatomy, shown = Anatomy.of(model), [tokens(model, 4, 32, seed=1)]
    site = anatomy.block_sites(0)[-1]
    exact, rough = (Stream(anatomy, shown, compute=dtype) for dtype in (torch.float32, torch.bfloat16))
    wanted, found = (s.collect(0, {site: (Gram,)}, advance=True).sites[site][Gram] for s in (exact, rough))
    assert found.dtype == torch.float32
    assert 0 < (found - wanted).norm() / wanted.norm() < 0.02
    assert rough.hidden[0].dtype == torch.bfloat16
    assert all(torch.equal(before[name], p) and p.dtype == torch.float32 for name, p in model.named_parameters())

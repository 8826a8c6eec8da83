"""Blocks that use another block's matrices: the same as copies of them, stored once, opened anywhere that trimtab is."""

import copy

import pytest
import torch
from torch import nn

from trimtab.anatomy import Anatomy
from trimtab.core.edits import DropBlock, Edits, Share
from trimtab.core.errors import ModelError, UsageError
from trimtab.core.kinds import Seen
from trimtab.core.recipe import Recipe
from trimtab.core.registry import get
from trimtab.engine import surgery
from trimtab.engine.apply import apply
from trimtab.engine.run import run
from trimtab.engine.shared import SharedLinear, sources, write_out
from trimtab.host.checkpoint import save, skeleton
from trimtab.host.export.job import export
from trimtab.stats import BlockCosine
from trimtab.testing.folders import byte_tokenizer
from trimtab.testing.roundtrip import logits, reopened, shown
from trimtab.testing.tiny import tiny, tokens

FAMILIES = ("llama", "gpt2", "qwen3", "gpt_neox", "phi3")


def shared(family: str, edits: Edits | None = None) -> nn.Module:
    model = tiny(family)
    apply(Anatomy.of(model), edits or [Share(2, 1)])
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_it_says_what_copies_would_say(family: str) -> None:
    model, copies = shared(family), tiny(family)
    anatomy = Anatomy.of(copies)
    with torch.no_grad():
        for here, there in zip(anatomy.block_sites(2), anatomy.block_sites(1), strict=True):
            anatomy.module(here).load_state_dict(anatomy.module(there).state_dict())
    assert torch.equal(logits(model), logits(copies))
    ids = tokens(model)[:1]
    said = model.generate(ids, max_new_tokens=5, do_sample=False, return_dict_in_generate=True)
    assert torch.equal(said.sequences, copies.generate(ids, max_new_tokens=5, do_sample=False))
    assert [layer.keys.shape[-2] for layer in said.past_key_values.layers] == [ids.shape[1] + 4] * 4


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_stored_once_and_opens_again(family: str) -> None:
    model = shared(family, [Share(2, 1), DropBlock(0)])  # what is shared has another number afterwards
    again = reopened(model)
    assert torch.equal(logits(again), logits(model))
    assert sources(again) == sources(model)
    assert all(".0." in there and ".1." in here for here, there in sources(again).items())
    whole = shared(family, [DropBlock(0)])
    one = sum(site.shape[0] * site.shape[1] for site in Anatomy.of(whole).block_sites(1))
    counted = [sum(p.numel() for p in m.parameters() if p.ndim > 1) for m in (whole, again)]
    assert counted[0] - counted[1] == one


def test_what_takes_the_place_of_a_matrix_serves_both() -> None:
    model = reopened(shared("llama").to(torch.bfloat16))  # whose rotary tables are in float32
    run(model, Recipe.of("gptq(bits=4, group_size=16)"), shown(model))
    twin = write_out_copy(model)
    assert torch.equal(logits(model), logits(twin))
    assert torch.equal(logits(reopened(model)), logits(model))
    assert not any(site.block == 2 for site in Anatomy.of(model).sites)


def write_out_copy(model: nn.Module) -> nn.Module:
    twin = copy.deepcopy(model)
    assert all(
        module.source is not model.get_submodule(sources(model)[path])
        for path, module in twin.named_modules()
        if is_shared(module)
    )
    assert write_out(twin) == 7
    assert not any(map(is_shared, twin.modules()))
    return twin


def is_shared(module: nn.Module) -> bool:
    return isinstance(module, SharedLinear)


def test_what_others_use_outlives_its_block() -> None:
    model = shared("llama")
    ids, blocks = tokens(model), [block for block in model.model.layers if block is not model.model.layers[1]]
    apply(Anatomy.of(model), [DropBlock(1)])
    assert not sources(model)
    assert list(model.model.layers) == blocks
    assert torch.equal(model(ids).logits, shared_by_hand(ids))


def shared_by_hand(ids: torch.Tensor) -> torch.Tensor:
    model = shared("llama")
    write_out(model)
    apply(Anatomy.of(model), [DropBlock(1)])
    return model(ids).logits


def test_another_program_gets_a_copy_for_each_place(tmp_path) -> None:
    model = tiny("llama", num_hidden_layers=4, vocab_size=264)
    apply(Anatomy.of(model), [Share(2, 1)])
    done = export(save(model, byte_tokenizer(), tmp_path / "model"), "plain")
    assert done.remarks[0].startswith("7 shared matrices were written out")
    assert sum(entry.name.startswith("model.layers.2.") for entry in done.entries) == 9


DOWN = "model.layers.{}.mlp.down_proj"


@pytest.mark.parametrize(
    "modules",
    [
        {DOWN.format(1): DOWN.format(1)},
        {DOWN.format(1): DOWN.format(2), DOWN.format(2): DOWN.format(1)},
        {DOWN.format(1): "model.layers.2.mlp.up_proj"},
        {DOWN.format(1): "model.layers.2.mlp"},
        {DOWN.format(1): "no.such"},
        {DOWN.format(1): ["model"]},
        {"model.norm": DOWN.format(1)},
    ],
)
def test_descriptions_that_make_no_sense_are_refused(modules) -> None:
    entries = {path: {"kind": "shared", "of": of} for path, of in modules.items()}
    with pytest.raises(ModelError, match="cannot build 'model"):
        surgery.shape(skeleton(tiny("llama").config), entries, torch.float32)


def test_blocks_that_are_not_alike_do_not_share() -> None:
    with pytest.raises(ModelError, match="cannot use the matrices of block"):
        shared("lfm2", [Share(1, 0)])
    model = tiny("mixtral")
    with pytest.raises(ModelError, match="or an expert's"):
        apply(Anatomy.of(model), [Share(2, 1)])
    assert torch.equal(logits(model), logits(tiny("mixtral")))


def folded(cosine: list[float], **knobs: int) -> Edits:
    anatomy = Anatomy.of(tiny("llama", num_hidden_layers=len(cosine)))
    return get("foldgpt")(**knobs).rewrite(anatomy, Seen({BlockCosine: torch.tensor(cosine, dtype=torch.float64)}))


def test_the_neighbours_that_are_most_alike_are_folded() -> None:
    cosine = [0.1, 0.2, 0.9, 0.8, 0.3, 0.7, 0.2, 0.99]
    assert folded(cosine) == [Share(2, 1)]
    assert folded(cosine, share=2) == [Share(2, 1), Share(5, 4)]
    assert folded(cosine, share=3) == [Share(2, 1), Share(4, 3), Share(6, 5)]  # there is room for three, only so
    assert folded(cosine, drop=1) == [Share(2, 1), DropBlock(7)]
    assert folded(cosine, drop=2) == [Share(3, 1), DropBlock(2), DropBlock(7)]
    with pytest.raises(UsageError, match="8 blocks without 1 have not 3 pairs"):
        folded(cosine, drop=1, share=3)

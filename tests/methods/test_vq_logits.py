"""VQ-Logits: the head, and nothing else, becomes codebooks that answer like it, best where the text is."""

import pytest
import torch
from torch import Tensor

from trimtab.anatomy import Anatomy
from trimtab.core.errors import UsageError
from trimtab.core.places import Role
from trimtab.core.recipe import Recipe
from trimtab.engine.run import run
from trimtab.engine.sweep import Stream
from trimtab.formats import Codebook
from trimtab.methods.factorize.vq_logits import _inputs
from trimtab.stats import Leaving
from trimtab.testing.tiny import tiny, tokens

FAMILIES = ("llama", "gpt2", "gemma2")  # RMS norm, layer norm with a tied head, a norm whose gain is one plus its weight


def changed(family: str, expression: str) -> tuple[Tensor, Tensor, Codebook]:
    """Logits before and after [tokens, vocabulary], on the text that was shown, and the head."""
    model = tiny(family)
    ids = tokens(model, 4, 32)
    with torch.no_grad():
        before = model(ids).logits.flatten(0, 1)
        run(model, Recipe.of(expression), [ids])
        after = model(ids).logits.flatten(0, 1)
    return before.double(), after.double(), Anatomy.of(model).weight(Anatomy.of(model).sites[-1])


def error(family: str, expression: str) -> float:
    before, after, _ = changed(family, expression)
    return float((after - before).square().sum() / before.square().sum())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_entry_for_every_token_changes_nothing(family: str) -> None:
    """But for the codebook's float16."""
    assert error(family, "vq_logits(books=1)") < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_each_part_of_it_brings_the_logits_closer(family: str) -> None:
    small = "books=2, entries=12"
    errors = [error(family, f"vq_logits({small}{more})") for more in ("", ", bias=False", ", bias=False, weighted=False")]
    assert errors == sorted(errors)
    assert error(family, "vq_logits(books=4, entries=12)") < errors[0]


def test_the_bias_makes_mean_logits_right() -> None:
    before, after, _ = changed("llama", "vq_logits(books=1, entries=8)")
    assert torch.allclose(after.mean(0), before.mean(0), atol=2e-3 * float(before.std()))
    without = changed("llama", "vq_logits(books=1, entries=8, bias=False)")[1]
    assert float((without.mean(0) - before.mean(0)).std()) > 0.05 * float(before.std())


def test_without_a_bias_the_tokens_of_a_cluster_are_tied() -> None:
    _, after, head = changed("llama", "vq_logits(books=1, entries=8, bias=False)")
    assert len(after[0].unique()) == len(head.codes.unique()) <= 8
    assert len(changed("llama", "vq_logits(books=1, entries=8)")[1][0].unique()) == after.shape[1]


def test_tokens_that_the_text_makes_probable_count_more() -> None:
    def weighed(frequency: float) -> float:
        before, after, _ = changed("llama", f"vq_logits(books=2, entries=8, frequency={frequency})")
        return float((before.softmax(-1).mean(0) * (after - before).square()).sum())

    assert weighed(1.0) < weighed(0.0)


def test_a_product_code_takes_fewer_bits_for_the_codebook() -> None:
    _, _, rows = changed("llama", "vq_logits(books=2, entries=16)")
    _, _, runs = changed("llama", "vq_logits(books=2, entries=16, dim=8)")
    out, in_ = rows.shape
    assert rows.bits == 8 * (2 * out + 2 * 2 * 16 * in_) / (out * in_)  # a code of 4 bits alone in its row takes a byte
    assert runs.spec()["dim"] == 8
    assert runs.tensors()["codebook"].numel() * in_ == rows.tensors()["codebook"].numel() * 8


def test_only_the_head_is_touched_and_a_tied_one_parts_from_the_embedding() -> None:
    model = tiny("gpt2")
    before = {site.name: Anatomy.of(model).weight(site).dense() for site in Anatomy.of(model).sites}
    run(model, Recipe.of("vq_logits(books=1, entries=8)"), [tokens(model, 2, 16)])
    anatomy = Anatomy.of(model)
    assert not anatomy.tied
    for site in anatomy.sites:
        assert torch.equal(anatomy.weight(site).dense(), before[site.name]) == (site.role is not Role.HEAD)


def test_the_head_is_said_to_read_what_it_reads() -> None:
    """`Leaving` is blind to the size of tokens, and so is the norm behind it."""
    for family in FAMILIES:
        model, heard = tiny(family), []
        ids = tokens(model, 2, 16)
        anatomy = Anatomy.of(model)
        model.get_submodule(anatomy.sites[-1].path).register_forward_pre_hook(lambda _, x, heard=heard: heard.append(x[0]))
        with torch.no_grad():
            model(ids)
            stream, heard_here = Stream(anatomy, [ids]), heard[0].flatten(0, 1)
            seen = [stream.collect(b, {}, [Leaving], advance=True).block[Leaving] for b in range(len(anatomy.blocks))]
            given = _inputs(anatomy, anatomy.sites[-1], seen[-1])
        assert torch.allclose(given, heard_here, atol=5e-3 * float(heard_here.abs().max()))


def test_runs_that_do_not_divide_are_refused() -> None:
    model = tiny("llama")
    with pytest.raises(UsageError, match="dim=7 does not divide the 64 inputs of lm_head"):
        run(model, Recipe.of("vq_logits(dim=7, weighted=False, bias=False)"), [tokens(model, 1, 8)])


def test_blocks_are_quantized_afterwards() -> None:
    model = tiny("llama")
    run(model, Recipe.of("vq_logits(books=2, entries=16) -> rtn(bits=4, group_size=32)"), [tokens(model, 2, 16)])
    kinds = {Anatomy.of(model).weight(site).kind for site in Anatomy.of(model).sites}
    assert kinds == {"dense", "grouped", "codebook"}

"""One look at the real model and the real text; they are fetched if the cache does not hold them."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from trimtab.core.errors import ModelError
from trimtab.data.text import documents
from trimtab.data.windows import encoder, evaluation_windows
from trimtab.host.gguf_import import ROUNDED, asset_model
from trimtab.host.model_assets import resolve_model
from trimtab.host.source import history
from trimtab.measure.perplexity import bits_per_byte, perplexity, token_losses
from trimtab.measure.text import generate
from trimtab.measure.text_bytes import scored_bytes, token_bytes


@pytest.mark.slow
@pytest.mark.real
def test_the_real_model_reads_the_real_text_as_well_as_it_should() -> None:
    folder = resolve_model("asset:smollm2-135m")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.num_parameters() == 134_515_008
    assert history(asset_model()) == ROUNDED
    windows = evaluation_windows("asset:boolq", tokenizer, count=8, length=512, seed=0)
    losses = token_losses(model, windows)
    found = perplexity(losses)
    assert abs(found.value - 19) < 3 * found.stderr < 8
    assert 0.9 < bits_per_byte(losses, scored_bytes(tokenizer, windows)).value < 1.1
    assert "Paris" in generate(model, tokenizer, "The capital of France is", 4)


@pytest.mark.real
def test_the_real_tokenizer_accounts_for_every_byte() -> None:
    tokenizer = AutoTokenizer.from_pretrained(resolve_model("asset:smollm2-135m"))
    sizes, encode = token_bytes(tokenizer), encoder(tokenizer)
    for text in documents("asset:boolq")[:50]:
        assert sizes[list(encode(text))].sum() == len(text.encode())


def test_other_names_are_left_alone_and_unknown_assets_refused() -> None:
    assert resolve_model("some/name") == "some/name"
    with pytest.raises(ModelError, match=r"no model is called 'asset:smollm'; did you mean 'asset:smollm2-135m'\?"):
        resolve_model("asset:smollm")


@pytest.mark.real
@torch.no_grad()
def test_the_real_perplexity_equals_an_independent_one_to_a_millionth() -> None:
    """Float64 from the logits on: which tokens are scored, against what, and how they are averaged."""
    folder = resolve_model("asset:smollm2-135m")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    windows = evaluation_windows("asset:boolq", tokenizer, count=3, length=96, seed=0)
    losses = []
    for window in windows:
        logits = model(input_ids=window[None]).logits[0].double()
        losses += [float(logits[t - 1].exp().sum().log() - logits[t - 1, window[t]]) for t in range(1, len(window))]
    assert len(losses) == 3 * 95
    assert perplexity(token_losses(model, windows)).value == pytest.approx(math.exp(math.fsum(losses) / len(losses)), rel=1e-6)

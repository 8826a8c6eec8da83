"""The backward pass block by block gives what a backward pass through the whole model gives."""

import pytest
import torch

from trimtab.anatomy import Anatomy
from trimtab.core.progress import unwatched
from trimtab.core.recipe import Recipe
from trimtab.core.seeds import Seeds
from trimtab.engine.gradients import backward
from trimtab.engine.run import Bench
from trimtab.stats import Fisher, Gradient
from trimtab.testing.tiny import tiny, tokens


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_gradients_equal_those_of_the_whole_model(family: str) -> None:
    model = tiny(family).requires_grad_(False)
    anatomy, ids = Anatomy.of(model), tokens(model, batch=3, length=9)
    bench = Bench(model, [ids[:2], ids[2:]], Seeds(0), unwatched, False, Recipe.of("rtn"), 0)
    sites = [site for site in anatomy.sites if site.block is not None]
    with torch.no_grad():
        found = dict(item for _, stats in backward(bench, anatomy, (Gradient, Fisher), sites, 2) for item in stats.items())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    expected = {site: [torch.zeros(site.shape), torch.zeros(site.shape)] for site in sites}
    model.requires_grad_(True)
    for window in ids[:2]:
        model.zero_grad()
        logits = model(window[None], use_cache=False).logits[0, :-1]
        torch.nn.functional.cross_entropy(logits, window[1:]).backward()
        for site in sites:
            gradient = anatomy.module(site).weight.grad
            gradient = gradient.T if site.transposed else gradient
            expected[site][0] += gradient / 2
            expected[site][1] += gradient.square() / 2
    for site in sites:
        for need, wanted in zip((Gradient, Fisher), expected[site], strict=True):
            assert torch.allclose(found[site][need], wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max())), site.name

"""What every probe reads is what the model says, nothing is touched, and what cannot be read is refused."""

import math

import pytest
import torch
from probe_toy import LENGTH, WINDOWS, on_tiny

from trimtab.anatomy.probe import still
from trimtab.core.errors import DataError, ModelError, RecipeError
from trimtab.core.kinds import Finding
from trimtab.core.places import Role
from trimtab.core.recipe import Recipe
from trimtab.core.registry import get
from trimtab.engine.probe import probe, read
from trimtab.engine.run import run
from trimtab.testing.roundtrip import shown
from trimtab.testing.tiny import ARCHITECTURES, tiny, tokens

# What the runner hands out.


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_what_is_read_is_what_the_model_says(family: str) -> None:
    model = tiny(family)
    ids = tokens(model, 2, LENGTH)
    with still(model):
        subject, whole = read(model, ids), model(ids, use_cache=False).logits
        depth = len(subject.anatomy.blocks)
        for window in range(2):
            assert torch.equal(subject.onward(1, window, subject.hidden(1, window)), subject.hidden(depth, window))
            assert torch.equal(subject.drive(2, window, subject.hidden(2, window)), subject.hidden(3, window))
            last = subject.hidden(depth, window)
            assert torch.allclose(subject.logits(last), whole[window], atol=1e-5)
            assert torch.allclose(subject.logits(last[5:9]), whole[window, 5:9], atol=1e-5)


def test_the_input_of_the_head_is_what_the_head_multiplies() -> None:
    model = tiny("llama")
    with still(model):
        subject = read(model, tokens(model, 2, LENGTH))
        last = subject.hidden(4, 0)
        assert torch.allclose(subject.head_input(last) @ model.lm_head.weight.T, subject.logits(last), atol=1e-5)
        assert torch.equal(subject.head_input(last), model.model.norm(last))


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "gpt_oss"])
def test_other_matrices_are_tried_without_touching_the_models_own(family: str) -> None:
    model = tiny(family)
    with still(model):
        subject = read(model, tokens(model, 2, LENGTH))
        anatomy = subject.anatomy
        sites = [site for site in anatomy.block_sites(1) if site.role is not Role.ROUTER]
        entering, leaving = subject.hidden(1, 0), subject.hidden(2, 0)
        same = subject.drive(1, 0, entering, {site: anatomy.weight(site).dense() for site in sites})
        assert torch.allclose(same, leaving, atol=1e-5)
        other = subject.drive(1, 0, entering, {site: 2 * anatomy.weight(site).dense() for site in sites})
        assert (other - leaving).norm() > 0.1 * leaving.norm()
        assert torch.equal(subject.drive(1, 0, entering), leaving)
        assert not any("forward" in vars(module) for module in model.modules())


def test_a_block_whose_outputs_are_silenced_does_nothing() -> None:
    """Biases included: gpt2 has them everywhere."""
    for family in ("llama", "gpt2", "mixtral"):
        model = tiny(family)
        with still(model):
            subject = read(model, tokens(model, 1, LENGTH))
            ends = [site for site in subject.anatomy.block_sites(2) if site.role in (Role.O, Role.DOWN)]
            silent = subject.drive(2, 0, subject.hidden(2, 0), dict.fromkeys(ends))
            assert torch.equal(silent, subject.hidden(2, 0))


def test_a_router_is_no_plain_product() -> None:
    model = tiny("mixtral")
    with still(model):
        subject = read(model, tokens(model, 1, LENGTH))
        router = next(site for site in subject.anatomy.block_sites(0) if site.role is Role.ROUTER)
        with pytest.raises(ModelError, match="not a plain product"):
            subject.drive(0, 0, subject.hidden(0, 0), {router: subject.anatomy.weight(router).dense()})


def test_a_packed_model_is_probed_like_any_other() -> None:
    model = tiny("llama")
    run(model, Recipe.of("rtn(bits=8, group_size=0)"), shown(model))
    before, after = (on_tiny(get("sensitivity")(bits=2), m) for m in (tiny("llama"), model))
    assert before["KL"] == pytest.approx(after["KL"], rel=0.2)


def test_what_cannot_be_read_is_refused() -> None:
    model = tiny("llama")
    with pytest.raises(DataError, match="longer windows"):
        probe(model, tokens(model, 2, 4), [get("outliers")()])
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[0, 0] = math.inf
    with pytest.raises(ModelError, match="not finite"):
        probe(model, tokens(model, 2, LENGTH), [get("outliers")()])
    with pytest.raises(RecipeError, match="trimtab probe MODEL outliers"):
        Recipe.of("outliers")


def test_a_finding_is_a_mean_over_windows_with_its_error() -> None:
    found = Finding.of("a", "b", torch.tensor([[1.0, 3.0], [5.0, 5.0]]), 7)
    assert [(m.value, m.stderr, m.n, m.setting) for m in found.measurements] == [(2, 1, 7, {"block": 0}), (5, 0, 7, {"block": 1})]
    assert math.isnan(Finding.of("a", "b", torch.tensor([[1.0]]), 1).measurements[0].stderr)
    assert Finding.of("a", "b", torch.tensor([1.0]), 1).measurements[0].stderr == 0
    ranked = Finding.of("a", "b", torch.tensor([3.0, 1.0, 2.0, 1.0, 9.0]), 1)
    assert (ranked.lowest(), ranked.highest()) == ("1, 3", "0, 4")
    some = Finding.columns([[{"a": 1.0}, {"a": 2.0}], [{}, {}]], {"a": ("u", 1), "b": ("u", 1)})
    assert [m.setting["block"] for m in some["a"].measurements] == [0]
    assert some["b"].measurements == ()


def test_probes_share_one_reading() -> None:
    """And none of them leaves it other than it was."""
    model = tiny("llama")
    ids = tokens(model, WINDOWS, LENGTH)
    alone = [probe(model, ids, [get(id)()])[0] for id in ("sensitivity", "outliers")]
    assert probe(model, ids, [get("sensitivity")(), get("outliers")()]) == alone

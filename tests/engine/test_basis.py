"""Matrices on a basis of another block: the same as products of their own, stored once, opened anywhere that trimtab is."""

import copy

import pytest
import torch
from torch import nn

from trimtab.anatomy import Anatomy
from trimtab.core.edits import DropBlock, OnBasis, SetWeight
from trimtab.core.errors import ModelError, RecipeError
from trimtab.core.kinds import Seen
from trimtab.core.recipe import Recipe
from trimtab.core.registry import get
from trimtab.engine import surgery
from trimtab.engine.apply import apply
from trimtab.engine.basis import BasisLinear, borrowers, write_out_bases
from trimtab.engine.plan import plan
from trimtab.engine.run import run
from trimtab.engine.unpacking import unpack
from trimtab.formats import Chain, Dense, low_rank
from trimtab.host.checkpoint import save, skeleton
from trimtab.host.export.job import export
from trimtab.measure.size import bits_per_weight
from trimtab.stats import Gram
from trimtab.testing.folders import byte_tokenizer
from trimtab.testing.roundtrip import logits, ran, reopened, shown
from trimtab.testing.tiny import tiny

SHARED = "basis_sharing(keep=0.6)"


def based(family: str = "llama", recipe: str = SHARED) -> nn.Module:
    return ran(family, Recipe.of(recipe))[0]


def written_out(model: nn.Module) -> nn.Module:
    twin = copy.deepcopy(model)
    write_out_bases(twin)
    return twin


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_it_says_what_products_of_their_own_say_and_opens_again(family: str) -> None:
    model = based(family)
    found = list(borrowers(model))
    assert found
    assert all((".1." in path and ".0." in of) or (".3." in path and ".2." in of) for path, _, of in found)
    twin = written_out(model)
    assert not list(borrowers(twin))
    torch.testing.assert_close(logits(twin), logits(model), rtol=0, atol=1e-5)
    again = reopened(model)
    assert torch.equal(logits(again), logits(model))
    assert [(path, of) for path, _, of in borrowers(again)] == [(path, of) for path, _, of in found]


def test_bytes_are_counted_once() -> None:
    """Of what shares: keep of all weights, up to a rank; and by the weights that are stood for."""
    model, whole = based(), tiny("llama")
    stored = {name: t for name, t in model.state_dict().items() if ".layers." in name and t.ndim > 1}
    before = {name: t for name, t in whole.state_dict().items() if ".layers." in name and t.ndim > 1}
    share = sum(t.numel() for t in stored.values()) / sum(t.numel() for t in before.values())
    assert 0.57 < share <= 0.6
    now, then = bits_per_weight(model)[0], bits_per_weight(whole)[0]
    assert now.n == then.n
    assert now.value == pytest.approx(then.value * share, rel=1e-9)


def test_it_is_the_best_of_its_rank_for_the_stacked_matrices() -> None:
    """By torch's own decomposition of what all blocks put out, on the inputs of the untouched model."""
    untouched, model = tiny("llama"), based(recipe="basis_sharing(keep=0.6, damping=0.0)")
    sites = [site for site in Anatomy.of(untouched).sites if site.path.endswith("q_proj") and site.block in (0, 1)]
    inputs: dict[str, list[torch.Tensor]] = {site.path: [] for site in sites}
    for site in sites:
        kept = inputs[site.path]
        untouched.get_submodule(site.path).register_forward_pre_hook(lambda m, x, kept=kept: kept.append(x[0].flatten(0, -2)))
    with torch.no_grad():
        for ids in shown(untouched):
            untouched(ids)
    x = torch.cat([torch.cat(found) for found in inputs.values()]).double()
    stacked = torch.cat([untouched.get_submodule(site.path).weight.detach() for site in sites]).double()
    lender, borrower = (model.get_submodule(site.path) for site in sites)
    found = torch.cat([lender.weight_value.dense(), borrower.product.dense()]).double()
    rank = borrower.left.in_features
    tail = torch.linalg.svdvals(stacked @ x.T)[rank:].square().sum()
    assert float(((stacked - found) @ x.T).square().sum()) == pytest.approx(float(tail), rel=1e-3)


def test_one_block_is_svd_llm() -> None:
    """Of the first block, which sees the same inputs in both."""
    alone, other = (Anatomy.of(based(recipe=r)) for r in ("basis_sharing(keep=0.6, blocks=1)", "svd_llm(keep=0.6)"))
    for here, there in zip(alone.block_sites(0), other.block_sites(0), strict=True):
        torch.testing.assert_close(alone.weight(here).dense(), other.weight(there).dense(), rtol=1e-3, atol=1e-4)


def test_what_has_no_equal_is_factored_alone() -> None:
    """Three blocks in pairs leave one over; experts and matrices that write are never on another's basis."""
    model = tiny("llama", num_hidden_layers=3)
    run(model, Recipe.of(SHARED), shown(model))
    assert {path.split(".")[2] for path, _, _ in borrowers(model)} == {"1"}
    assert all(isinstance(Anatomy.of(model).weight(site), Chain) for site in Anatomy.of(model).block_sites(2))
    assert not any(name in path for path, _, _ in borrowers(model) for name in ("o_proj", "down_proj"))
    assert any("down_proj" in path for path, _, _ in borrowers(based(recipe="basis_sharing(keep=0.6, writers=True)")))
    assert all("self_attn" in path for path, _, _ in borrowers(based("mixtral")))


def test_nothing_is_gained_by_keeping_everything() -> None:
    anatomy = Anatomy.of(tiny("llama"))
    told = Seen({Gram: {site: torch.eye(site.shape[1]) for site in anatomy.sites}})
    assert get("basis_sharing")(keep=1.0).rewrite(anatomy, told) == []
    assert all("dense" in note for note in told.notes)


def test_codes_follow_for_bases_and_for_what_stands_on_them() -> None:
    model = based(recipe=f"{SHARED} -> rtn(bits=8, group_size=0)")
    _, module, of = next(iter(borrowers(model)))
    assert module.left.weight_value.kind == "grouped"
    assert [factor.kind for factor in model.get_submodule(of).weight_value.factors] == ["grouped", "grouped"]
    plain = based()
    assert float((logits(model) - logits(plain)).norm() / logits(plain).norm()) < 0.06
    assert torch.equal(logits(reopened(model)), logits(model))
    with pytest.raises(RecipeError, match="is Chain by then"):
        plan(Anatomy.of(tiny("llama")), Recipe.of(f"{SHARED} -> wanda"))


def test_another_program_gets_matrices_of_their_own(tmp_path) -> None:
    model = tiny("llama", vocab_size=264)
    run(model, Recipe.of(SHARED), shown(model))
    done = export(save(model, byte_tokenizer(), tmp_path / "model"), "plain")
    assert "shared matrices were written out" in done.remarks[0]
    assert sum(entry.name.endswith("q_proj.weight") for entry in done.entries) == 4


def test_a_basis_outlives_its_block() -> None:
    model = based()
    said = [model.get_submodule(path).product.dense() for path, _, _ in borrowers(model) if ".1." in path]
    apply(Anatomy.of(model), [DropBlock(0)])
    assert all(".2." in path for path, _, _ in borrowers(model))
    now = [m.weight_value.dense() for path, m in model.named_modules() if ".0." in path and hasattr(m, "weight_value")]
    assert all(any(torch.equal(one, other) for other in now) for one in said)


def test_what_lends_cannot_be_made_something_else() -> None:
    model = based()
    lender = Anatomy.of(model).site(next(iter(borrowers(model)))[2])
    with pytest.raises(ModelError, match="stand on the basis"):
        apply(Anatomy.of(model), [SetWeight(lender, Dense(Anatomy.of(model).weight(lender).dense()))])
    recipe = Recipe.of("wanda")
    before = logits(model)
    assert "were unpacked" in unpack(model, recipe)[0]
    assert not any(isinstance(module, BasisLinear) for module in model.modules())
    torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-4)


DOWN = "model.layers.{}.mlp.down_proj"


@pytest.mark.parametrize(
    "changed",
    [
        {"of": DOWN.format(1)},
        {"of": "no.such"},
        {"of": ["model"]},
        {"shape": [64, 3]},
        {"shape": [64, -1]},
        {"shape": [64]},
        {"bias": "no"},
        {"of": "model.layers.2.mlp.up_proj"},
    ],
)
def test_descriptions_that_make_no_sense_are_refused(changed) -> None:
    lender = {**low_rank(torch.ones(64, 8), torch.ones(8, 128)).spec(), "bias": False}
    entry = {"kind": "on_basis", "of": DOWN.format(0), "shape": [64, 8], "bias": False}
    surgery.shape(skeleton(tiny("llama").config), {DOWN.format(1): entry, DOWN.format(0): lender}, torch.float32)
    entries = {DOWN.format(1): {**entry, **changed}, DOWN.format(0): lender}
    with pytest.raises(ModelError, match="cannot build 'model"):
        surgery.shape(skeleton(tiny("llama").config), entries, torch.float32)


def test_experts_stand_alone() -> None:
    anatomy = Anatomy.of(tiny("mixtral"))
    expert = next(site for site in anatomy.sites if site.index is not None)
    with pytest.raises(ModelError, match="experts live in one tensor"):
        apply(anatomy, [OnBasis(expert, torch.ones(4, 2), expert)])

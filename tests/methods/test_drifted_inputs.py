"""Methods that make up for drifted inputs: exact where they must be, GPTQ where nothing drifted, fed by two real streams."""

import pytest
import torch
from torch import Tensor

from trimtab.anatomy import Anatomy
from trimtab.core.kinds import Seen
from trimtab.core.places import Role, Site
from trimtab.core.recipe import Recipe
from trimtab.engine.run import run
from trimtab.engine.sweep import Stream
from trimtab.formats import Dense
from trimtab.methods.quantize.gptaq import Gptaq
from trimtab.methods.quantize.gptq import Gptq
from trimtab.methods.quantize.rescomp import Rescomp
from trimtab.methods.quantize.residual_start import ResidualStart
from trimtab.stats import Drift, Gram
from trimtab.testing.tiny import tiny, tokens

SITE = Site("model.layers.0.mlp.down_proj", Role.DOWN, (24, 64), block=0)


def problem(seed: int = 0, tokens: int = 400) -> tuple[Tensor, Tensor, Tensor]:
    """weight [24, 64], drifted inputs and original inputs [tokens, 64]."""
    draw = torch.Generator().manual_seed(seed)
    original = torch.randn(tokens, 64, generator=draw) @ (torch.randn(64, 64, generator=draw) / 8 + torch.eye(64))
    bend = torch.eye(64) + 0.2 * torch.randn(64, 64, generator=draw) / 8
    x = original @ bend + 0.2 * torch.randn(tokens, 64, generator=draw)
    return torch.randn(24, 64, generator=draw), x, original


def seen(x: Tensor, original: Tensor) -> Seen:
    gram = Gram.finish(Gram.update(Gram.start((24, 64), x.device), x))
    drift = Drift.finish(Drift.update(Drift.start((24, 64), x.device), x, original))
    return Seen({Gram: gram, Drift: drift})


def output_error(weight: Tensor, made: Tensor, x: Tensor, original: Tensor) -> float:
    """||Q X - W X°||^2 / ||W X°||^2."""
    target = original.double() @ weight.double().T
    return float((x.double() @ made.double().T - target).square().sum() / target.square().sum())


def test_the_start_is_the_least_squares_answer():
    """strength 1, no damping: W' minimizes ||W' X - W X°||, so its error is orthogonal to the inputs."""
    weight, x, original = problem()
    moved = ResidualStart(damping=0.0).solve(Dense(weight), seen(x, original), SITE).dense()
    best = torch.linalg.lstsq(x.double(), original.double() @ weight.double().T).solution.T
    assert torch.allclose(moved.double(), best, atol=1e-4)


@pytest.mark.parametrize("strength", [0.25, 1.0])
def test_strength_is_a_fraction_of_the_way(strength: float):
    weight, x, original = problem()
    whole = ResidualStart(damping=0.0).solve(Dense(weight), seen(x, original), SITE).dense() - weight
    part = ResidualStart(strength=strength, damping=0.0).solve(Dense(weight), seen(x, original), SITE).dense() - weight
    assert torch.allclose(part, strength * whole, atol=1e-5)


@pytest.mark.parametrize("method", [Gptaq(bits=3), Rescomp(bits=3, rebound=0.0), Gptaq(bits=3, strength=0.0)])
def test_without_drift_it_is_gptq(method):
    weight, x, original = problem()
    shown = seen(x, original) if method.strength == 0 else seen(x, x)
    plain = Gptq(bits=3).solve(Dense(weight), seen(x, x), SITE)
    assert torch.equal(method.solve(Dense(weight), shown, SITE).dense(), plain.dense())


@pytest.mark.parametrize("seed", range(3))
def test_making_up_for_drift_lowers_the_error_against_the_original_outputs(seed: int):
    weight, x, original = problem(seed)
    shown = seen(x, original)
    plain = Gptq(bits=4, group_size=32).solve(Dense(weight), shown, SITE).dense()
    fed = Gptaq(bits=4, group_size=32, strength=1.0).solve(Dense(weight), shown, SITE).dense()
    start = ResidualStart().solve(Dense(weight), shown, SITE)
    exact = Gptq(bits=4, group_size=32).solve(start, shown, SITE).dense()
    errors = [output_error(weight, made, x, original) for made in (exact, fed, plain)]
    assert errors == sorted(errors)


def test_pairs_come_from_the_untouched_and_the_compressed_model():
    """The drift that the engine hands over is that of two whole forward passes, and vanishes in the first block."""
    model, untouched = tiny("llama"), tiny("llama")
    batches = [tokens(model, batch=2, length=16, seed=s) for s in (1, 2)]
    anatomy = Anatomy.of(model)
    stream, beside = Stream(anatomy, batches), Stream(anatomy, batches)
    found = {}
    for block in range(len(anatomy.blocks)):
        sites = [s for s in anatomy.sites if s.block == block]
        stats = stream.collect(block, dict.fromkeys(sites, (Drift,)), beside=beside).sites
        found |= {site.name: stats[site][Drift] for site in sites if site.role is Role.Q}  # fed by the blocks before alone
        with torch.no_grad():
            for site in sites:
                model.get_submodule(site.path).weight.mul_(1.1)
        stream.advance(block)
    inputs = [_inputs(m, batches) for m in (untouched, model)]
    for name, drift in found.items():
        original, x = (side[name].double() for side in inputs)
        assert torch.allclose(drift.double(), (original - x).T @ x / len(x), atol=1e-5), name
        assert (drift.abs().max() > 1e-4) == (".layers.0." not in name), name


def _inputs(model, batches):
    anatomy = Anatomy.of(model)
    found = {s.name: [] for s in anatomy.sites if s.role is Role.Q}
    handles = [
        model.get_submodule(s.path).register_forward_pre_hook(
            lambda _, args, name=s.name: found[name].append(args[0].detach().flatten(0, -2))
        )
        for s in anatomy.sites
        if s.name in found
    ]
    with torch.no_grad():
        for ids in batches:
            model(ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(parts) for name, parts in found.items()}


def test_a_recipe_with_a_start_runs_in_one_sweep_and_differs_from_plain_gptq():
    recipes = [Recipe.of("gptq(bits=3, group_size=0)"), Recipe.of("residual_start -> gptq(bits=3, group_size=0)")]
    outputs = []
    for recipe in recipes:
        model = tiny("llama")
        bench = run(model, recipe, [tokens(model, batch=4, length=24, seed=1)])
        outputs.append(model(tokens(model, seed=7)).logits)
        places = [r.place for r in bench.receipts if r.step == 1]
        assert places == [r.place for r in bench.receipts if r.step == len(recipe.steps)]
    assert not torch.equal(*outputs)

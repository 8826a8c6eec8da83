"""AWQ, its clipping, SmoothQuant, D2Quant and QuantLRM: each does what its formula says, where it can be seen."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from trimtab.anatomy import Anatomy
from trimtab.core.errors import CalibrationError, UsageError
from trimtab.core.kinds import Original, Reference, Seen
from trimtab.core.places import Fold, Gain, Role, Rows, Site
from trimtab.core.recipe import Recipe
from trimtab.core.registry import get
from trimtab.engine.run import run
from trimtab.formats import Dense
from trimtab.stats import AbsMax, AbsMean, Gram
from trimtab.tensors.rounding import fit
from trimtab.tensors.scaling import Rounding, output_error
from trimtab.testing.problems import Layer, layer, solve
from trimtab.testing.roundtrip import logits, shown
from trimtab.testing.tiny import tiny

GAIN = Gain("norm")


def site(out: int, in_: int, role: Role = Role.Q) -> Site:
    return Site(f"{role.value}_proj", role, (out, in_), block=0)


def asked(method: Any, weights: Mapping[Site, Tensor], x: Tensor, source: Gain | Rows = GAIN) -> tuple[Tensor, dict[str, Any]]:
    """What the method answers at a fold, and what it notes."""
    values: dict[type, Any] = {}
    for need in (Gram, AbsMean, AbsMax):
        if need in method.needs:
            found = need.finish(need.update(need.start((1, x.shape[1]), x.device), x))
            values[need] = dict.fromkeys(weights, found)
    seen = Seen(values)
    return method.scale(Fold(tuple(weights), source), {s: Dense(w) for s, w in weights.items()}, seen), seen.notes


def loud(channels: list[int], factor: float = 30.0) -> Layer:
    """A layer in which some inputs are much louder than the others, as in the residual stream of a language model."""
    problem = layer(48, 128, 512)
    x = problem.x.clone()
    x[:, channels] *= factor
    return Layer(problem.weight, x)


def output_change(problem: Layer, rounding: Rounding, scale: Tensor) -> float:
    """Mean squared output error of rounding with this scale, over the tokens themselves."""
    change = rounding.scaled(problem.weight, scale).double() - problem.weight.double()
    return float((problem.x.double() @ change.T).square().sum(1).mean())


@pytest.mark.parametrize("duo", [False, True])
@pytest.mark.parametrize("clip", [False, True])
def test_awq_protects_loud_channels(duo: bool, clip: bool) -> None:
    problem, rounding = loud([3, 77]), Rounding(3, 64, clip=clip)
    scale, notes = asked(get("awq")(bits=3, duo=duo, clip=clip), {site(48, 128): problem.weight}, problem.x)
    assert bool((scale[[3, 77]] > 1.2 * scale.median()).all())
    before, after = (output_change(problem, rounding, s) for s in (torch.ones(128), scale))
    assert after < 0.7 * before
    assert notes["relative_error"] == pytest.approx(after / before, rel=1e-3)
    assert notes["exponent"] > 0


def test_awq_leaves_equally_loud_channels_alone() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randint(0, 2, (256, 64), generator=draw) * 2.0 - 1
    scale, _ = asked(get("awq")(bits=3), {site(24, 64): layer(in_=64).weight}, x)
    assert torch.allclose(scale, torch.ones(64, dtype=torch.float64))


def test_awq_weighs_all_matrices_that_share_the_input() -> None:
    """A second matrix in which the loud channel plays no role, but is large, wants no scale."""
    problem = loud([5])
    alone, _ = asked(get("awq")(bits=3), {site(48, 128): problem.weight}, problem.x)
    other = 100 * layer(48, 128, seed=3).weight
    other[:, 5] = 0
    both, _ = asked(get("awq")(bits=3), {site(48, 128): problem.weight, site(48, 128, Role.K): other}, problem.x)
    assert alone.max() / alone.median() > both.max() / both.median()


def test_duo_scales_down_where_weights_are_large() -> None:
    problem = loud([9])
    weight = problem.weight.clone()
    weight[:, 40] *= 20
    scale, notes = asked(get("awq")(bits=3, duo=True), {site(48, 128): weight}, problem.x)
    assert notes["exponent"] > 0
    assert int(scale.argmin()) == 40


def test_awq_then_rounding_beats_rounding_where_channels_stand_out() -> None:
    """On a model with such channels, put in so that the function stays."""
    errors = {}
    for recipe in ("rtn(bits=3)", "awq(bits=3) -> rtn(bits=3)", "awq(bits=3) -> awq_clip(bits=3)"):
        model = tiny("llama", num_hidden_layers=2)
        with torch.no_grad():
            for block in model.model.layers:
                block.input_layernorm.weight[::16] *= 32
                block.post_attention_layernorm.weight[::16] *= 32
                for matrix in (block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj):
                    matrix.weight[:, ::16] /= 32
                for matrix in (block.mlp.gate_proj, block.mlp.up_proj):
                    matrix.weight[:, ::16] /= 32
        before = logits(model)
        run(model, Recipe.of(recipe), shown(model))
        errors[recipe] = float((logits(model) - before).norm() / before.norm())
    plain, folded, clipped = errors.values()
    assert folded < 0.8 * plain
    assert clipped < 0.8 * plain


def test_clipping_takes_the_least_output_error_of_each_group() -> None:
    problem = layer(6, 64, 200)
    weight = problem.weight.clone()
    weight[::2, 5] = 12.0  # a large weight behind a channel that is almost silent
    x = problem.x.clone()
    x[:, 5] *= 1e-3
    made = get("awq_clip")(bits=3, group_size=32)
    found = solve(made, Layer(weight, x)).dense()
    for group in (slice(0, 32), slice(32, 64)):
        for row in range(6):
            part, there = weight[row, group], x[:, group]
            tried = []
            for step in range(10):
                limit = (1 - step / 20) * part.abs().max()
                clipped = part.clamp(-limit, limit)
                rounded = fit(clipped, 3).nearest(clipped)
                tried.append((float(((rounded - part) @ there.T).square().sum()), step))
            error = float(((found[row, group] - part) @ there.T).square().sum())
            assert error == pytest.approx(min(tried)[0], rel=1e-3)
            assert row % 2 or group.start or min(tried)[1] > 0, "there the range is worth shrinking"


def test_queries_and_keys_are_not_clipped_unless_asked() -> None:
    problem = layer(24, 64)
    weight = problem.weight.clone()
    weight[:, 3] *= 5
    gram = Gram.finish(Gram.update(Gram.start((24, 64), weight.device), problem.x))
    plain = get("rtn")(bits=3).solve(Dense(weight), Seen({}), site(24, 64)).dense()

    def clips(role: Role, everywhere: bool) -> bool:
        made = get("awq_clip")(bits=3, everywhere=everywhere)
        return not torch.equal(made.solve(Dense(weight), Seen({Gram: gram}), site(24, 64, role)).dense(), plain)

    assert not any(clips(role, everywhere=False) for role in (Role.Q, Role.K, Role.QKV))
    assert clips(Role.Q, everywhere=True)
    assert clips(Role.V, everywhere=False)


def test_smoothquant_between_its_limits() -> None:
    problem = loud([3])
    weights = {site(48, 128): problem.weight, site(24, 128, Role.K): 2 * layer(seed=4).weight}
    loudest = problem.x.abs().amax(0).double()
    largest = torch.cat(list(weights.values())).abs().amax(0).double()
    for alpha in (0.0, 0.5, 0.8, 1.0):
        scale, _ = asked(get("smoothquant")(alpha=alpha), weights, problem.x)
        assert torch.allclose(scale, loudest**alpha / largest ** (1 - alpha))
    even = problem.x.double() / asked(get("smoothquant")(alpha=1.0), weights, problem.x)[0]
    assert torch.allclose(even.abs().amax(0), torch.ones(128, dtype=torch.float64), rtol=1e-6)
    columns = torch.cat(list(weights.values())).double() * asked(get("smoothquant")(alpha=0.0), weights, problem.x)[0]
    assert torch.allclose(columns.abs().amax(0), torch.ones(128, dtype=torch.float64), rtol=1e-6)


def test_smoothquant_works_behind_norms_unless_told_otherwise() -> None:
    source = Rows(site(128, 8, Role.UP), torch.arange(128))
    weights = {site(24, 128, Role.DOWN): layer().weight}
    assert asked(get("smoothquant")(), weights, layer().x, source)[0] is None
    assert asked(get("smoothquant")(everywhere=True), weights, layer().x, source)[0] is not None


def test_smoothquant_halves_the_range_of_what_enters_matrices() -> None:
    """In the model: the loudest inputs of the attention, relative to the median channel."""
    model = tiny("llama", num_hidden_layers=1)
    with torch.no_grad():
        model.model.layers[0].input_layernorm.weight[7] *= 40
    peaks = []
    for recipe in (None, "smoothquant"):
        if recipe:
            run(model, Recipe.of(recipe), shown(model))
        seen: list[Tensor] = []
        handle = model.model.layers[0].self_attn.q_proj.register_forward_pre_hook(lambda m, args, seen=seen: seen.append(args[0]))
        logits(model)
        handle.remove()
        channels = seen[0].flatten(0, -2).abs().amax(0)
        peaks.append(float(channels.max() / channels.median()))
    assert peaks[1] < 0.4 * peaks[0]


DOWN, UP = site(24, 128, Role.DOWN), Rows(site(128, 8, Role.UP), torch.arange(128))


def uneven() -> Tensor:
    """A matrix whose columns are of very different size."""
    weight = layer().weight
    return weight * torch.exp(0.8 * torch.randn(128, generator=torch.Generator().manual_seed(2)))


@pytest.mark.parametrize("clip", [False, True])
def test_dual_scales_gain_from_round_to_round(clip: bool) -> None:
    weight, relative = uneven(), []
    for rounds in (1, 2, 4, 8, 15):
        made = get("d2quant")(bits=2, clip=clip, rounds=rounds)
        scale, notes = asked(made, {DOWN: weight}, layer().x, UP)
        before, after = ((Rounding(2, 64, clip=clip).scaled(weight, s) - weight).square().sum() for s in (torch.ones(128), scale))
        assert notes["relative_error"] == pytest.approx(float(after / before), rel=1e-4), "what is noted is what is had"
        relative.append(notes["relative_error"])
    assert relative == sorted(relative, reverse=True)
    assert relative[-1] < 0.75


def test_one_round_of_dual_scales_by_hand() -> None:
    """The least squares of each column, up to the common factor that grids follow."""
    weight = uneven()
    rounded = Rounding(3, 64).nearest(weight)
    fitted = torch.stack([torch.linalg.lstsq(rounded[:, [k]], weight[:, [k]]).solution[0, 0] for k in range(128)])
    scale, _ = asked(get("d2quant")(bits=3, rounds=1), {DOWN: weight}, layer().x, UP)
    ratio = scale * fitted.double()
    heard = rounded.any(0)  # columns that are rounded to zeros alone decide nothing
    assert 64 < int(heard.sum()) < 128
    assert torch.allclose(ratio[heard], ratio[heard][:1], rtol=1e-4)
    assert float(scale.log().mean()) == pytest.approx(0, abs=1e-9)


def test_a_matrix_on_its_grid_needs_no_dual_scales() -> None:
    weight = Rounding(2, 64).nearest(uneven())
    scale, notes = asked(get("d2quant")(bits=2), {DOWN: weight}, layer().x, UP)
    assert torch.equal(scale, torch.ones(128, dtype=torch.float64))
    assert notes["relative_error"] == 1.0


def test_weighted_dual_scales_are_judged_by_the_outputs() -> None:
    weight = uneven()
    x = loud([1, 2]).x
    gram = Gram.finish(Gram.update(Gram.start((24, 128), x.device), x))
    rounding, errors = Rounding(2, 64), []
    for weighted in (False, True):
        scale, notes = asked(get("d2quant")(bits=2, weighted=weighted), {DOWN: weight}, x, UP)
        errors.append(output_error(rounding.scaled(weight, scale) - weight, gram))
    assert errors[1] <= errors[0]
    assert notes["relative_error"] == pytest.approx(errors[1] / output_error(rounding.nearest(weight) - weight, gram), rel=1e-4)


def test_dual_scales_are_for_down_projections() -> None:
    assert asked(get("d2quant")(), {site(24, 128): layer().weight}, layer().x)[0] is None
    model = tiny("gpt2")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    bench = run(model, Recipe.of("d2quant(group_size=32)"), shown(model))
    assert bench.notes == ["d2quant(group_size=32) has nothing to scale in this model"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_groups_that_do_not_fit_are_refused_before_any_weight_moves() -> None:
    model = tiny("llama", intermediate_size=96)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for recipe in ("awq", "d2quant", "quantlrm(base='x')"):
        with pytest.raises(UsageError, match=r"down_proj has in=96, group_size=64; use one of"):
            run(model, Recipe.of(recipe), shown(model))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def tuned(changes: Mapping[Site, Tensor], **knobs: Any) -> tuple[Any, Seen]:
    """QuantLRM and what it sees of a model whose fine-tuning changed its matrices so."""
    mine = {place: layer(*place.shape, seed=5).weight for place in changes}
    base = {place: weight - changes[place] for place, weight in mine.items()}
    return get("quantlrm")(base="before", rounded=False, **knobs), Seen({Original: mine, Reference: base})


def test_importance_protects_both_ends_and_what_did_not_move() -> None:
    place = site(4, 5)
    change = torch.tensor(
        [[1.0, 2.0, 5.0, 3.0, 0.0], [1.0, 3.0, 3.0, 3.0, 0.0], [-1.0, 3.0, 3.0, 3.0, 0.0], [1.0, 3.0, 3.0, 3.0, 3.0]]
    )
    made, seen = tuned({place: change})
    importance = made._importance(seen)[place]
    # 17 changes: from 1 over the median 3 to 5. One of four entries at an end counts 10, the middle 1, halfway 1 + 9 / 4.
    expected = torch.tensor([10.0, (3.25 + 3) / 4, (10 + 3) / 4, 1.0, 4.0], dtype=torch.float64)
    assert torch.allclose(importance, expected, rtol=1e-4)


def test_importance_is_measured_over_all_matrices() -> None:
    small, large = site(8, 64), site(8, 64, Role.K)
    draw = torch.Generator().manual_seed(0)
    noise = torch.rand(8, 64, generator=draw) + 0.5
    made, seen = tuned({small: noise, large: 100 * noise})
    found = made._importance(seen)
    least, median, largest = noise.min(), (noise.max() + 100 * noise.min()) / 2, 100 * noise.max()
    below = 1 + 9 * ((median - noise) / (median - least)).square()
    above = 1 + 9 * ((100 * noise - median) / (largest - median)).square()
    assert torch.allclose(found[small], below.mean(0).double(), rtol=1e-4)
    assert torch.allclose(found[large], above.mean(0).double(), rtol=1e-4)


def test_routers_are_not_compared() -> None:
    router, expert = site(4, 64, Role.ROUTER), Site("gate_up", Role.GATE_UP, (8, 64), block=0, index=0)
    made, seen = tuned({router: torch.ones(4, 64), expert: torch.ones(8, 64).cumsum(0)})
    assert set(made._importance(seen)) == {expert}


def quantlrm(model: Any, base: Any, **knobs: Any) -> Any:
    return run(model, Recipe((get("quantlrm")(base="before", group_size=32, **knobs),)), shown(model), bases={"before": base})


def test_a_model_that_was_not_tuned_has_no_signal() -> None:
    with pytest.raises(CalibrationError, match="no weight differs from those of before"):
        quantlrm(tiny("llama"), tiny("llama"))


def test_half_precision_is_where_weights_stay_the_same() -> None:
    """A change far below the resolution of bfloat16 is none; in float32 every weight has moved."""
    model, base = tiny("llama"), tiny("llama")
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            parameter *= 1 + 1e-5
            if name.endswith("q_proj.weight"):
                parameter[:, 7] *= 1.5
    site_of = {s.name: s for s in Anatomy.of(model).sites}
    place = site_of["model.layers.0.self_attn.q_proj"]
    weights = [{s: m.get_parameter(f"{s.path}.weight").detach() for s in (place,)} for m in (model, base)]
    seen = Seen({Original: weights[0], Reference: weights[1]})
    coarse = get("quantlrm")(base="before")._importance(seen)[place]
    assert int(coarse.argmin()) == 7
    assert float(coarse.median()) > 50, "most of 64 rows did not move"
    fine = get("quantlrm")(base="before", rounded=False)._importance(seen)[place]
    assert float(fine.max()) <= 10, "no row without a change"


def test_the_scales_follow_the_importance_and_never_hurt() -> None:
    model, base = tiny("llama"), tiny("llama")
    with torch.no_grad():
        for parameter in base.model.layers.parameters():
            draw = torch.Generator().manual_seed(parameter.numel())
            parameter += 0.05 * torch.randn(parameter.shape, generator=draw) * (torch.rand(parameter.shape, generator=draw) < 0.3)
    bench = quantlrm(model, base)
    assert len(bench.receipts) == 16
    assert all(r.notes["relative_error"] <= 1 for r in bench.receipts)

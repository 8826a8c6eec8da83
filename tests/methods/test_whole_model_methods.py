"""QuaRot, FLAP, ShortGPT and Layer-Wise Quantization on the families they were not written for."""

import pytest
import torch

from trimtab.anatomy import Anatomy
from trimtab.core.errors import ModelError, TrimtabError, UsageError
from trimtab.core.kinds import Original, Seen
from trimtab.core.places import Coupling, Member, Role, Site, Unit
from trimtab.core.recipe import Recipe
from trimtab.core.registry import get
from trimtab.engine.run import run
from trimtab.formats import Dense
from trimtab.stats import BlockCosine, Moments
from trimtab.testing.checks_channel import narrows_truly
from trimtab.testing.problems import layer
from trimtab.testing.roundtrip import Float64, in_float64, logits, ran, reopened, shown
from trimtab.testing.tiny import tiny

ROTATABLE = ("llama", "qwen2", "qwen3", "mistral", "mixtral", "smollm3", "phi3")
NOT_ROTATABLE = ("gpt2", "olmo2", "opt", "gpt_neox", "gemma2", "gemma3", "lfm2", "gpt_oss")
NARROWABLE = ("llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "phi3", "smollm3", "gpt2", "gpt_neox", "opt", "lfm2")


@pytest.mark.parametrize("family", ROTATABLE)
@pytest.mark.parametrize("expression", ["quarot", "quarot(rotation='orthogonal', heads=False)"])
def test_rotation_keeps_the_function(family: str, expression: str) -> None:
    with Float64():
        model = in_float64(family)
        before, matrix = logits(model), Anatomy.of(model).weight(Anatomy.of(model).sites[1]).dense().clone()
        run(model, Recipe.of(expression), shown(model))
        assert (logits(model) - before).norm() / before.norm() < 1e-9
        assert not torch.allclose(Anatomy.of(model).weight(Anatomy.of(model).sites[1]).dense(), matrix, atol=0.05)


SLICED = tuple(family for family in ROTATABLE if family != "mixtral")


@pytest.mark.parametrize("family", SLICED)
def test_a_stream_that_is_turned_and_not_cut_says_the_same(family: str) -> None:
    with Float64():
        model = in_float64(family)
        before = logits(model)
        run(model, Recipe.of("slicegpt(sparsity=0.0)"), shown(model))
        assert (logits(model) - before).norm() / before.norm() < 1e-9


@pytest.mark.parametrize("family", SLICED)
def test_directions_that_the_stream_has_not_cost_nothing(family: str) -> None:
    """All writers, and the embedding, write into 48 of 64 channels: the other 16 can be cut from the turned stream."""
    with Float64():
        model = in_float64(family)
        draw = torch.Generator().manual_seed(0)
        basis = torch.linalg.qr(torch.randn(64, 48, generator=draw, dtype=torch.float64)).Q
        anatomy = Anatomy.of(model)
        for site in anatomy.sites:
            weight = anatomy.module(site).weight
            if site.role in (Role.O, Role.DOWN):
                weight.data = basis @ basis.T @ weight.data
            elif site.role is Role.EMBED:
                weight.data = weight.data @ basis @ basis.T
        for module in model.modules():  # what a norm adds to a mean square of fewer channels would count for less
            for name in {"eps", "variance_epsilon"} & vars(module).keys():
                setattr(module, name, 0.0)
        before = logits(model)
        run(model, Recipe.of("slicegpt(sparsity=0.25)"), shown(model))
        assert model.config.hidden_size == 48
        assert (logits(model) - before).norm() / before.norm() < 1e-6
    assert reopened(model.float()).config.hidden_size == 48


def test_slices_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ModelError, match="experts live in one tensor"):
        ran("mixtral", Recipe.of("slicegpt"))
    with pytest.raises(ModelError, match=r"slicegpt: .* subtracts the mean"):
        ran("gpt2", Recipe.of("slicegpt"))
    with pytest.raises(UsageError, match="no multiple of 48"):
        ran("llama", Recipe.of("slicegpt(sparsity=0.75, multiple=48)"))


@pytest.mark.parametrize("family", NOT_ROTATABLE)
def test_what_does_not_commute_is_refused_and_left_alone(family: str) -> None:
    model = tiny(family)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ModelError, match="quarot: "):
        run(model, Recipe.of("quarot"), shown(model))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_rotation_spreads_an_outlier() -> None:
    model = tiny("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[:, 7] *= 30
    run(model, Recipe.of("quarot"), shown(model))
    loudness = model.model.layers[0].mlp.up_proj.weight.norm(dim=0)
    assert loudness.max() < 2 * loudness.mean()


@pytest.mark.parametrize("family", NARROWABLE)
def test_channels_vanish_without_moving_the_others(family: str) -> None:
    narrows_truly(get("flap")(), family)


def test_modules_that_would_mix_up_their_heads_keep_them() -> None:
    for family in ("opt", "gpt2", "phi3"):
        _, bench = ran(family, Recipe.of("flap(sparsity=0.3)"))
        assert {r.kind for r in bench.receipts} == {Unit.NEURON}
    _, bench = ran("llama", Recipe.of("flap(sparsity=0.3)"))
    assert {r.kind for r in bench.receipts} == {Unit.NEURON, Unit.KV_GROUP}


def test_experts_cannot_be_narrowed_one_by_one() -> None:
    _, bench = ran("mixtral", Recipe.of("flap(sparsity=0.3)"))
    assert {r.kind for r in bench.receipts} == {Unit.KV_GROUP}
    with pytest.raises(TrimtabError, match="no separable"):
        ran("gpt_oss", Recipe.of("flap(sparsity=0.3)"))


def test_flap_by_its_formula() -> None:
    problem = layer(24, 8)
    x, weight = problem.x.double(), problem.weight.double()
    indices = torch.arange(8).reshape(4, 2)
    site = Site("o", Role.O, (24, 8), block=0)
    seen = Seen({Moments: torch.stack([x.mean(0), x.var(0, correction=0)])})
    for unit, power in ((Unit.NEURON, 1), (Unit.KV_GROUP, 2)):
        coupling = Coupling("c", 0, unit, (Member(site, "columns", indices),))
        raw = (x.var(0, correction=0) * weight.square().sum(0)) ** power
        expected = ((raw - raw.mean()) / raw.std(correction=0)).reshape(4, 2).mean(1)
        found = get("flap")().score(coupling, Dense(problem.weight), seen)
        assert torch.allclose(found, expected, rtol=1e-9)
        keep = torch.tensor([True, False, True, True])
        repair = get("flap")().repair(coupling, Dense(problem.weight), keep, seen)
        assert torch.allclose(repair.double(), weight[:, 2:4] @ x.mean(0)[2:4], atol=1e-5)
    assert get("flap")(bias=False).repair(coupling, Dense(problem.weight), keep, seen) is None


def test_the_bias_of_flap_pays() -> None:
    before = logits(tiny("llama"))
    errors = [float((logits(ran("llama", Recipe.of(f"flap(sparsity=0.3, bias={b})"))[0]) - before).norm()) for b in (True, False)]
    assert errors[0] < errors[1]


def test_shortgpt_ranks_by_influence_and_breaks_ties_towards_the_front() -> None:
    anatomy = Anatomy.of(tiny("llama"))

    def dropped(cosine: list[float], drop: int) -> list[int]:
        seen = Seen({BlockCosine: torch.tensor(cosine, dtype=torch.float64)})
        return [e.block for e in get("shortgpt")(drop=drop).rewrite(anatomy, seen)]

    assert dropped([0.1, 0.9, 0.5, 0.7], 1) == [1]
    assert dropped([0.1, 0.9, 0.5, 0.7], 2) == [1, 3]
    assert dropped([0.5, 0.5, 0.5, 0.5], 2) == [2, 3]


@pytest.mark.parametrize(
    ("pattern", "depth", "speedup", "kept"),
    [
        ("unified", 12, 2.0, [0, 2, 4, 6, 8, 11]),
        ("unified", 30, 1.2, [*range(24), 29]),
        ("unified", 10, 3.0, [0, 5, 9]),
        ("unified", 10, 5.0, [0, 9]),
        ("early_exit", 10, 2.0, [0, 1, 2, 3, 4]),
        ("contiguous", 10, 2.0, [0, 1, 2, 8, 9]),
    ],
)
def test_blocks_are_kept_at_equal_distances(pattern: str, depth: int, speedup: float, kept: list[int]) -> None:
    anatomy = Anatomy.of(tiny("llama", num_hidden_layers=depth))
    dropped = [e.block for e in get("unified_skip")(speedup=speedup, pattern=pattern).rewrite(anatomy, Seen({}))]
    assert sorted({*range(depth)} - {*dropped}) == kept


def test_two_blocks_stay() -> None:
    with pytest.raises(UsageError, match=r"4 blocks at speedup=3\.0 leave 1"):
        ran("llama", Recipe.of("unified_skip(speedup=3.0)"))


def blockwise(order: str, bits: float = 3.0, seed: int = 0) -> list[int]:
    """The bits of four blocks of two sites each, of which block 1 turns the stream most and block 3 least."""
    sites = [Site(f"layers.{b}.{r}", r, (8, 8), block=b) for b in range(4) for r in (Role.UP, Role.DOWN)]
    draw = torch.Generator().manual_seed(5)
    weights = {s: torch.randn(8, 8, generator=draw) for s in sites}
    for s in sites:
        if s.block == 2:  # long-tailed: few weights beyond one standard deviation
            weights[s] = weights[s] ** 5
    seen = Seen(
        {BlockCosine: torch.tensor([0.5, 0.1, 0.6, 0.9], dtype=torch.float64), Original: weights},
        torch.Generator().manual_seed(seed),
    )
    chosen = get("layerwise_quant")(bits=bits, order=order).allocate(sites, seen)
    assert all(chosen[a] == chosen[b] for a, b in zip(sites[::2], sites[1::2], strict=True))
    return [chosen[s] for s in sites[::2]]


def test_influential_blocks_get_the_bits() -> None:
    assert blockwise("lim") == [4, 4, 2, 2]
    assert blockwise("lim", 2.5) == [2, 4, 2, 2]
    assert blockwise("lim", 2.0) == [2, 2, 2, 2]
    assert blockwise("lim", 4.0) == [4, 4, 4, 4]
    assert blockwise("zd", 2.5) == [2, 2, 4, 2]


def test_reverse_is_the_reverse_and_random_is_random() -> None:
    assert [6 - b for b in blockwise("lim")] == blockwise("reverse")
    drawn = [tuple(blockwise("random", seed=seed)) for seed in range(12)]
    assert len(set(drawn)) > 2
    assert all(sum(d) == 12 for d in drawn)


def test_sites_outside_of_the_blocks_have_no_importance() -> None:
    with pytest.raises(UsageError, match="lm_head is in no block"):
        get("layerwise_quant")().allocate([Site("lm_head", Role.HEAD, (8, 8))], Seen({}))


@pytest.mark.parametrize("bad", ["low=4, high=4", "low=4, high=2", "bits=4.5", "bits=2.5, low=3"])
def test_impossible_averages_are_refused(bad: str) -> None:
    with pytest.raises(UsageError, match="low < high"):
        Recipe.of(f"rtn by layerwise_quant({bad})")

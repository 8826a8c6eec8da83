"""What channel methods score, whose units compete, and how near they come to what was asked for."""

from dataclasses import replace

import pytest
import torch

from trimtab.anatomy import Anatomy
from trimtab.core.edits import Narrow
from trimtab.core.errors import TrimtabError, UsageError
from trimtab.core.kinds import Original, Seen
from trimtab.core.places import Coupling, Member, Role, Site, Unit
from trimtab.core.recipe import Recipe
from trimtab.core.registry import get
from trimtab.engine.apply import apply
from trimtab.engine.channels import after
from trimtab.engine.run import run
from trimtab.formats import Dense
from trimtab.stats import BlockCosine, Fisher, Gradient, InputNorm, Moments
from trimtab.testing.checks_channel import narrows_truly
from trimtab.testing.roundtrip import logits, ran, shown
from trimtab.testing.tiny import tiny

UP, DOWN = Site("up", Role.UP, (6, 4), block=0), Site("down", Role.DOWN, (4, 6), block=0)
UNITS = torch.arange(6).reshape(3, 2)
PAIRS = Coupling("mlp", 0, Unit.NEURON, (Member(UP, "rows", UNITS), Member(DOWN, "columns", UNITS)))


@pytest.fixture
def layer() -> dict[Site, torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    return {site: torch.randn(site.shape, generator=draw) for site in (UP, DOWN)}


def by_unit(up: torch.Tensor, down: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[units] sums over the rows of up, and over the columns of down."""
    return up.double().sum(1).reshape(3, 2).sum(1), down.double().sum(0).reshape(3, 2).sum(1)


def test_magnitude_by_its_formula(layer) -> None:
    seen, weight = Seen({Original: layer}), Dense(layer[DOWN])
    first = sum(by_unit(layer[UP].abs(), layer[DOWN].abs()))
    second = sum(by_unit(layer[UP].square(), layer[DOWN].square())).sqrt()
    assert torch.allclose(get("magnitude_sp")(norm="l1").score(PAIRS, weight, seen), first)
    assert torch.allclose(get("magnitude_sp")().score(PAIRS, weight, seen), second, rtol=1e-6)


def test_wanda_by_its_formula(layer) -> None:
    norm = torch.tensor([1.0, 2, 3, 4, 5, 6])
    expected = (layer[DOWN].abs() * norm).double().sum(0).reshape(3, 2).mean(1)
    assert torch.allclose(get("wanda_sp")().score(PAIRS, Dense(layer[DOWN]), Seen({InputNorm: norm})), expected, rtol=1e-6)


def test_the_metrics_of_flap(layer) -> None:
    mean, variance = torch.linspace(-1, 1, 6).double(), torch.linspace(1, 2, 6).double()
    weight = layer[DOWN].double()
    raw = {
        "wifv": variance * weight.square().sum(0),
        "ifv": variance,
        "wifn": weight.abs().mean(0) * (variance + mean.square()).sqrt(),
    }
    for metric, values in raw.items():
        expected = ((values - values.mean()) / values.std(correction=0)).reshape(3, 2).mean(1)
        seen = Seen({Moments: torch.stack([mean, variance])})
        assert torch.allclose(get("flap")(metric=metric).score(PAIRS, Dense(layer[DOWN]), seen), expected, rtol=1e-6)


def test_taylor_by_its_formula(layer) -> None:
    draw = torch.Generator().manual_seed(4)
    gradient = {site: torch.randn(site.shape, generator=draw) for site in layer}
    fisher = {site: torch.rand(site.shape, generator=draw) for site in layer}
    seen = Seen({Original: layer, Gradient: gradient, Fisher: fisher})
    pull = {s: layer[s] * gradient[s] for s in layer}
    bend = {s: layer[s].square() * fisher[s] / 2 for s in layer}

    def score(**knobs: str) -> torch.Tensor:
        return get("llm_pruner")(**knobs).score(PAIRS, Dense(layer[DOWN]), seen).float()

    def sums(values: dict[Site, torch.Tensor]) -> torch.Tensor:
        return torch.stack(by_unit(values[UP], values[DOWN])).float()

    first = sums({s: pull[s].abs() for s in layer})
    assert torch.allclose(score(), first.sum(0), rtol=1e-4)
    assert torch.allclose(score(join="mean"), first.mean(0), rtol=1e-4)
    assert torch.allclose(score(join="max"), first.amax(0), rtol=1e-4)
    assert torch.allclose(score(join="prod").exp(), first.prod(0), rtol=1e-4)
    assert torch.allclose(score(join="first"), first[0], rtol=1e-4)
    assert torch.allclose(score(importance="param_second"), sums(bend).sum(0), rtol=1e-4)
    assert torch.allclose(score(importance="param_mix"), sums({s: (pull[s] - bend[s]).abs() for s in layer}).sum(0), rtol=1e-4)
    assert torch.allclose(score(importance="vectorize"), sums(pull).abs().sum(0), rtol=1e-4)


def kept(expression: str, family: str = "llama") -> dict[str, int]:
    _, bench = ran(family, Recipe.of(expression))
    return {r.place: r.notes["units_after"] for r in bench.receipts}


def test_who_competes_decides_where_units_go() -> None:
    uniform = kept("flap(sparsity=0.3, compete='ul-um')")
    assert len({count for place, count in uniform.items() if place.endswith("neuron")}) == 1
    assert len(set(kept("flap(sparsity=0.3)").values())) > 2
    by_hand = kept("flap(sparsity=0.3, compete='ul-mm', heads=0.5)")
    assert [count for place, count in by_hand.items() if place.endswith("kv_group")] == [1] * 4
    whole = kept("flap(sparsity=0.3, compete='al-mm', heads=0.0)")
    assert [count for place, count in whole.items() if place.endswith("kv_group")] == [2] * 4


def test_blocks_at_either_end_are_left_alone() -> None:
    found = kept("llm_pruner(sparsity=0.3, first=0.25, last=0.25)")
    assert [found[f"model.layers.{b}.mlp.neuron"] == 128 for b in range(4)] == [True, False, False, True]
    with pytest.raises(UsageError, match="lower first, last or sparsity"):
        ran("llama", Recipe.of("llm_pruner(sparsity=0.6, first=0.25, last=0.25)"))
    with pytest.raises(UsageError, match="uniform widths leave no block alone"):
        Recipe.of("llm_pruner(uniform=True)")


@pytest.mark.parametrize("expression", ["flap", "wanda_sp", "flap(compete='al-mm')", "llm_pruner", "adapt_pruner(steps=4)"])
@pytest.mark.parametrize("sparsity", [0.2, 0.5])
def test_the_budget_is_met_within_half_a_percent(expression: str, sparsity: float) -> None:
    method = Recipe.of(expression).steps[0].method
    for of in ("coupled", "model"):
        before, after = (tiny("llama", intermediate_size=512) for _ in range(2))
        bench = run(after, Recipe((replace(method, sparsity=sparsity, of=of),)), shown(after))
        gone = parameters(before) - parameters(after)
        whole = sum(r.weights for r in bench.receipts) if of == "coupled" else parameters(before)
        assert gone / whole == pytest.approx(sparsity, abs=0.005)
        assert not bench.notes


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.ndim > 1)


def test_a_part_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match=r"is more than the \d+ that can go"):
        ran("llama", Recipe.of("magnitude_sp(sparsity=0.9, of='model')"))


def test_nothing_is_emptied_and_that_is_said() -> None:
    _, bench = ran("llama", Recipe.of("magnitude_sp(sparsity=0.9)"))
    assert all(r.notes["units_after"] == 1 and r.notes["last_unit_kept"] for r in bench.receipts)
    assert "whole units come no nearer" in bench.notes[0]


def test_only_neurons_when_only_neurons_were_asked_for() -> None:
    assert {place.rpartition(".")[2] for place in kept("wanda_sp(units='neuron')")} == {"neuron"}
    with pytest.raises(TrimtabError, match=r"no separable kv_group units; seen: 4 sets of channels, e.g. .*: the module fixes"):
        ran("gpt2", Recipe.of("wanda_sp(units='kv_group')"))
    with pytest.raises(TrimtabError, match="experts share one tensor"):
        ran("mixtral", Recipe.of("wanda_sp(units='neuron')"))


@pytest.mark.parametrize("family", ["qwen2", "phi3", "gpt2", "smollm3"])
def test_units_vanish_without_moving_the_others(family: str) -> None:
    narrows_truly(get("magnitude_sp")(compete="model"), family)


def test_adapting_takes_most_where_the_stream_turns_least() -> None:
    method = get("adapt_pruner")(amplitude=0.1)
    couplings = [replace(PAIRS, name=str(block), block=block) for block in range(3)]
    seen = Seen({BlockCosine: torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)})
    parts = [part for _, part in method.pools(couplings, 0.2, seen)]
    assert parts == pytest.approx([0.1, 0.2, 0.3])
    even = Seen({BlockCosine: torch.full((3,), 0.5, dtype=torch.float64)})
    assert [part for _, part in method.pools(couplings, 0.2, even)] == pytest.approx([0.2] * 3)


def test_small_steps_add_up() -> None:
    """What is no whole unit yet is owed in the next step: the end is where one step would have come out."""
    steps, bench = ran("llama", Recipe.of("adapt_pruner(sparsity=0.5, steps=8, amplitude=0.0)"))
    once = kept("llm_pruner(sparsity=0.5)")
    assert {r.place: r.notes["units_after"] for r in bench.receipts} == once
    assert {r.notes["units_before"] for r in bench.receipts} == {2, 128}
    assert steps.model.layers[0].mlp.down_proj.in_features == once["model.layers.0.mlp.neuron"]
    with pytest.raises(UsageError, match="leave uniform out"):
        Recipe.of("adapt_pruner(uniform=True)")


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "phi3"])
def test_what_is_left_is_known_without_asking_again(family: str) -> None:
    model = tiny(family)
    anatomy, draw = Anatomy.of(model), torch.Generator().manual_seed(1)
    expected = []
    for coupling in anatomy.couplings():
        keep = torch.rand(coupling.units, generator=draw) < 0.6
        keep[-1] = True
        if coupling.unit is Unit.NEURON:
            apply(anatomy, [Narrow(coupling, keep)])
            expected.append(after(coupling, keep))
    found = [c for c in Anatomy.of(model).couplings() if c.unit is Unit.NEURON]
    for one, other in zip(expected, found, strict=True):
        assert [m.site for m in one.members] == [m.site for m in other.members]
        assert all(torch.equal(a.indices, b.indices) for a, b in zip(one.members, other.members, strict=True))


def test_what_is_looked_at_is_as_many_windows_as_were_asked_for():
    first, other = shown(tiny("llama"))[0][:2].split(1)
    kept = []
    for second in (other, other.flip(1)):
        model = tiny("llama")
        run(model, Recipe((get("adapt_pruner")(sparsity=0.4, windows=1, amplitude=0.1),)), [torch.cat([first, second])])
        kept.append(logits(model))
    torch.testing.assert_close(kept[0], kept[1], rtol=0, atol=0)

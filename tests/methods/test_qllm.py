"""QLLM: channels alone lose little and only where they merge, loud ones cost less behind them, what is learned is stored."""

import pytest
import torch

from trimtab.core.errors import UsageError
from trimtab.core.feeding import Feeds
from trimtab.core.kinds import Seen
from trimtab.core.places import Role, Site
from trimtab.core.recipe import Recipe
from trimtab.core.registry import get
from trimtab.core.seeds import Seeds
from trimtab.formats import Activations, Chain, Dense, Reassembly, linear
from trimtab.methods.quantize.qllm import Corrected, Qllm
from trimtab.testing.problems import Layer, layer, seen, solve
from trimtab.testing.roundtrip import ran


def loud(factor: float = 32.0) -> Layer:
    """Inputs of one loudness but for three, and columns that make up for it."""
    problem = layer()
    x, weight = problem.x / problem.x.abs().amax(0), problem.weight.clone()
    x[:, [3, 40, 90]] *= factor
    weight[:, [3, 40, 90]] /= factor
    return Layer(weight, x)


def begun(weight: Dense | Chain, **knobs: int) -> Corrected:
    return Qllm(**knobs).begin(weight, Seen({}, Seeds(0).at("here")), layer().site)


def test_loud_channels_are_split_and_others_merge() -> None:
    problem, method = loud(), get("qllm_channels")()
    shown = seen(method, problem)
    matrix, channels = method.solve(Dense(problem.weight), shown, problem.site).factors
    assert isinstance(channels, Reassembly)
    assert channels.shape == (128, 128)
    parts = channels.source.long().bincount()
    assert 0 < shown.notes["split"] <= 12
    assert set((parts > 1).nonzero().flatten().tolist()) <= {3, 40, 90}
    assert torch.equal(matrix.dense(), channels.gathered(problem.weight))
    assert float(channels.applied(problem.x).abs().max()) < float(problem.x.abs().max()) / 2
    assert problem.error(Chain((matrix, channels))) < 0.05


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_where_no_channel_stands_out_or_none_may_merge_nothing_moves(share: float) -> None:
    problem = layer() if share == 0 else Layer(layer().weight, torch.ones(4, 128))
    answer = solve(get("qllm_channels")(share=share), problem)
    assert isinstance(answer, Chain)
    assert torch.equal(answer.factors[-1].dense(), torch.eye(128))
    assert torch.equal(answer.dense(), problem.weight)


def test_four_bits_lose_less_behind_it() -> None:
    problem = loud()
    before = solve(get("qllm_channels")(), problem)
    right, lost = problem.x @ problem.weight.T, []
    for weight in (before, Dense(problem.weight)):
        answer = Qllm(epochs=0).solve(weight, Seen({}, Seeds(0).at("here")), problem.site)
        lost.append(float((linear(problem.x, answer) - right).norm()))
    assert lost[0] < 0.8 * lost[1]


@pytest.mark.parametrize("group_size", [0, 16])
def test_what_is_learned_is_what_is_stored(group_size: int) -> None:
    problem = loud()
    for weight in (solve(get("qllm_channels")(), problem), Dense(problem.weight)):
        learner = begun(weight, group_size=group_size)
        assert isinstance(learner, Feeds)
        with torch.no_grad():
            learner.up += 0.1 * torch.randn(learner.up.shape, generator=torch.Generator().manual_seed(0))
            result = learner.result()
            assert isinstance(result, Chain if isinstance(weight, Chain) else Activations)
            torch.testing.assert_close(learner.matrix(), result.dense(), rtol=1e-5, atol=1e-5)
            answer = learner.feed(problem.x) @ learner.fed().T
            torch.testing.assert_close(linear(problem.x, result), answer, rtol=1e-5, atol=1e-5)


def test_it_begins_where_rounding_to_nearest_ends() -> None:
    problem = layer()
    answer = Qllm(epochs=0).solve(Dense(problem.weight), Seen({}, Seeds(0).at("here")), problem.site)
    assert torch.equal(answer.dense(), solve(get("rtn")(bits=4, group_size=0), problem).dense())


def test_gradients_reach_the_correction() -> None:
    problem, learner = loud(), begun(Dense(loud().weight))
    with torch.no_grad():
        learner.up += 0.1
    (learner.feed(problem.x) @ learner.fed().T - problem.x @ problem.weight.T).square().mean().backward()
    assert set(learner.rates) == {name for name, _ in learner.named_parameters()}
    assert all(p.grad is not None and bool(p.grad.any()) and bool(p.grad.isfinite().all()) for p in learner.parameters())


def test_learning_pays() -> None:
    _, bench = ran("llama", Recipe.of("qllm_channels -> qllm(bits=3, epochs=6, rate=0.01, blocks=2)"))
    notes = [receipt.notes for receipt in bench.receipts if "error_after" in receipt.notes]
    assert notes
    assert any(note["error_after"] < 0.95 * note["error_before"] for note in notes)


def test_windows_cover_all_blocks_once() -> None:
    assert Qllm(blocks=4).windows(6) == [range(4), range(4, 6)]
    with pytest.raises(UsageError, match="no layer of its own"):
        Qllm().fits(Site("experts", Role.UP, (8, 8), 0, index=1))


def test_learning_goes_on_behind_what_another_step_packed() -> None:
    """Also where layers hold their matrices transposed and have biases; what was only split begins where it was."""
    for family in ("gpt2", "llama"):
        _, bench = ran(family, Recipe.of("qllm_channels -> qllm(bits=8, input_bits=8, epochs=2)"))
        notes = [receipt.notes for receipt in bench.receipts if "error_after" in receipt.notes]
        assert notes
        assert all(note["error_after"] <= note["error_before"] < 0.01 for note in notes)

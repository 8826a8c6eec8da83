"""FlatQuant: the transform changes nothing by itself, what is learned is what is stored, and it pays where channels stand out."""

import pytest
import torch

from trimtab.core.errors import UsageError
from trimtab.core.feeding import Feeds
from trimtab.core.kinds import Seen
from trimtab.core.places import Role, Site
from trimtab.core.recipe import Recipe
from trimtab.core.registry import get
from trimtab.core.seeds import Seeds
from trimtab.formats import Activations, Dense, Grouped, Kronecker, linear
from trimtab.methods.quantize.flatquant import Flat, FlatQuant, cayley
from trimtab.tensors.kronecker import along, even_split
from trimtab.testing.roundtrip import ran


def drawn(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def begun(**knobs: object) -> Flat:
    site = Site("blocks.0.up", Role.UP, (12, 48), 0)
    return FlatQuant(**knobs).begin(Dense(drawn(12, 48)), Seen({}, Seeds(0).at("here")), site)


def moved(learner: Flat, by: float = 0.1) -> Flat:
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter += by * torch.randn(parameter.shape, generator=draw)
    return learner


def test_a_transform_and_its_inverse_change_nothing_in_float64() -> None:
    left, right, scale = drawn(6, 6).double(), drawn(8, 8, seed=1).double(), drawn(48).double().exp()
    weight, x = drawn(12, 48).double(), drawn(5, 48).double()
    turned = along(weight / scale, torch.linalg.inv(left).mT, torch.linalg.inv(right).mT)
    torch.testing.assert_close(along(x * scale, left, right) @ turned.T, x @ weight.T, rtol=1e-10, atol=1e-10)
    one = [torch.eye(n, dtype=torch.float64) for n in (6, 8)]
    assert torch.equal(along(weight, *(torch.linalg.inv(part).mT for part in one)), weight)
    assert torch.equal(along(x, *one), x)


def test_the_identity_is_the_identity() -> None:
    learner = begun(start="identity", input_bits=16)
    with torch.no_grad():
        learner.loudness.zero_()
        assert torch.equal(learner.turned(), learner.weight)
        x = drawn(3, 48)
        assert torch.equal(learner.feed(x), x)


@pytest.mark.parametrize("start", ["hadamard", "orthogonal", "identity"])
def test_turning_forth_and_back_loses_nothing(start: str) -> None:
    learner, x = moved(begun(start=start, input_bits=16)), drawn(7, 48)
    with torch.no_grad():
        torch.testing.assert_close(learner.feed(x) @ learner.turned().T, x @ learner.weight.T, rtol=1e-4, atol=1e-4)


def test_cayley_gives_rotations() -> None:
    turn = cayley(drawn(9, 9).double())
    torch.testing.assert_close(turn @ turn.T, torch.eye(9, dtype=torch.float64))
    assert torch.equal(cayley(torch.zeros(4, 4)), torch.eye(4))


@pytest.mark.parametrize("input_bits", [4, 16])
@pytest.mark.parametrize("group_size", [0, 16])
def test_what_is_learned_is_what_is_stored(input_bits: int, group_size: int) -> None:
    learner, x = moved(begun(input_bits=input_bits, group_size=group_size)), drawn(7, 48)
    learner.progress = 1.0
    assert isinstance(learner, Feeds)
    result = learner.result()
    inner, transform = result.factors
    assert isinstance(transform, Kronecker)
    assert isinstance(inner, Grouped if input_bits == 16 else Activations)
    with torch.no_grad():
        torch.testing.assert_close(learner.matrix(), result.dense(), rtol=1e-5, atol=1e-5)
        assert torch.equal(inner.dense(), learner.fed())
        torch.testing.assert_close(linear(x, result), learner.feed(x) @ learner.fed().T, rtol=1e-5, atol=1e-5)


def test_every_parameter_has_a_rate_and_a_gradient() -> None:
    learner = moved(begun(input_bits=4, bits=3))
    assert set(learner.rates) == {name for name, _ in learner.named_parameters()}
    answer = learner.feed(drawn(9, 48)) @ learner.fed().T
    (answer - drawn(9, 12, seed=5)).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) and bool(p.grad.isfinite().all()) for p in learner.parameters())


def test_learning_pays() -> None:
    recipe = Recipe.of("flatquant(bits=3, input_bits=4, epochs=6, rate=0.1)")
    _, bench = ran("llama", recipe)
    notes = [receipt.notes for receipt in bench.receipts]
    assert all(note["error_after"] <= note["error_before"] for note in notes)
    assert any(note["error_after"] < 0.9 * note["error_before"] for note in notes)


def test_a_loud_channel_costs_less_behind_the_transform() -> None:
    weight, x = drawn(24, 48), drawn(64, 48, seed=1)
    x[:, 5] *= 64
    weight[:, 5] /= 64
    site, seen = Site("blocks.0.up", Role.UP, (24, 48), 0), Seen({}, Seeds(0).at("here"))
    rounded = Activations(get("rtn")(bits=4, group_size=0).solve(Dense(weight), seen, site), 4, 48)
    flat = FlatQuant(epochs=0).solve(Dense(weight), seen, site)
    lost = [float((linear(x, one) - x @ weight.T).norm()) for one in (flat, rounded)]
    assert lost[0] < lost[1] / 3


@pytest.mark.parametrize(("width", "split"), [(576, (24, 24)), (1536, (32, 48)), (33, (3, 11)), (13, (1, 13))])
def test_widths_are_split_evenly(width: int, split: tuple[int, int]) -> None:
    assert even_split(width) == split


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match="input_bits must be 2 to 8, or 16"):
        FlatQuant(input_bits=12)
    with pytest.raises(UsageError, match="no layer of its own"):
        FlatQuant().fits(Site("experts", Role.UP, (8, 8), 0, index=1))

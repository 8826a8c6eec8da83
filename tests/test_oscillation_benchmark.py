"""The small vision transformer: joined queries and keys answer as before, and what oscillates is counted."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import oscillation

from trimtab.core.seeds import Seeds
from trimtab.tensors.query_key import joined


def test_one_matrix_a_head_answers_as_two_did() -> None:
    whole, (seen, _) = oscillation.fresh(0), oscillation.pictures(8, Seeds(0).at("here"))
    layers = []
    for layer in whole.layers:
        weights = {name: matrix.weight.detach() for name, matrix in layer.matrices.items()}
        weights = {"qk": joined(weights.pop("q"), weights.pop("k"), oscillation.HEADS), **weights}
        layers.append(oscillation.Layer({name: oscillation.Whole(weight) for name, weight in weights.items()}))
    other = oscillation.Vision(layers)
    other.load_state_dict({n: v for n, v in whole.state_dict().items() if ".matrices." not in n}, strict=False)
    torch.testing.assert_close(other(seen), whole(seen), rtol=1e-4, atol=1e-4)


def test_answers_are_where_the_second_thing_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oscillation, "NOISE", 0.0)
    seen, answers = oscillation.pictures(200, Seeds(0).at("here"))
    for picture, answer in zip(seen, answers.tolist(), strict=True):
        first, second = (divmod(int(picture[:, thing].argmax()), oscillation.SIDE) for thing in range(2))
        down, right = second[0] - first[0], second[1] - first[1]
        wanted = (right < 0) if abs(right) >= abs(down) else 2 + (down < 0)
        assert answer == wanted


def test_a_code_that_goes_to_and_fro_oscillates() -> None:
    learner = oscillation.Lsq(torch.ones(1, 3), 2)
    with torch.no_grad():
        learner.step.fill_(1.0)
    watched = oscillation.Oscillation([learner])
    for step in range(50):
        with torch.no_grad():
            learner.weight[0, 0] = 2.0 * (step % 2) - 1.0
            learner.weight[0, 1] = 1.0 - step / 25
        watched.look()
    assert watched.share() == pytest.approx(1 / 3)


def test_steps_of_lsq_have_the_gradient_of_the_paper() -> None:
    learner = oscillation.Lsq(torch.tensor([[0.3, -0.8, 5.0, -9.0]]), 2)
    with torch.no_grad():
        learner.step.fill_(1.0)
    learner.matrix().sum().backward()
    wanted = ((0 - 0.3) + (-1 + 0.8) + 1 - 2) * learner.slower
    torch.testing.assert_close(float(learner.step.grad), wanted, rtol=1e-5, atol=1e-6)
    assert learner.weight.grad.tolist() == [[1.0, 1.0, 0.0, 0.0]]


def test_the_page_has_every_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oscillation, "JUDGED", 20)
    text = oscillation.page([oscillation.measured(seed, 4) for seed in range(2)], 4)
    assert all(f"| {side} |" in text for side in ("not rounded", *oscillation.SIDES))
    assert "±" in text

"""The stand-in policy: corrections touch what they say, bring back what rounding moved, and the page has every setting."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import policy

from trimtab.core.seeds import Seeds
from trimtab.engine.packed_linear import PackedLinear


@pytest.fixture(scope="module")
def whole() -> policy.Policy:
    return policy.trained(0, 8)


@pytest.fixture(scope="module")
def shown() -> tuple[torch.Tensor, torch.Tensor]:
    draw = Seeds(0).at("shown")
    return policy.scenes(16, draw)[0], torch.randn(16, policy.MOVES, 2, generator=draw)


def test_the_layout_is_the_papers(whole: policy.Policy) -> None:
    packed = {path for path, module in policy.rounded(whole, 4, 8).named_modules() if isinstance(module, PackedLinear)}
    assert {path.split(".")[0] for path in packed} == {"encoder", "head"}
    assert len([path for path in packed if path.startswith("encoder.")]) == 2 * 6
    assert all(path.endswith(("up", "down")) for path in packed if path.startswith("head."))


def test_the_untouched_policy_needs_no_correction(whole: policy.Policy, shown) -> None:
    copy = policy.Policy().eval()
    copy.load_state_dict(whole.state_dict())
    assert policy.correct(copy, whole, "ATM and OHB", *shown) == 0
    assert torch.equal(copy.act(*shown), whole.act(*shown))


def test_what_was_moved_comes_back(whole: policy.Policy, shown) -> None:
    """Queries and outputs of one attention scaled within the clamps: the policy acts as before again."""
    changed = policy.Policy().eval()
    changed.load_state_dict(whole.state_dict())
    with torch.no_grad():
        attention = changed.head[-1].attends[-1]
        for tensor in (attention.q.weight, attention.q.bias):
            tensor *= 0.8
        for tensor in (attention.o.weight, attention.o.bias):
            tensor *= 1.2
    apart = (changed.act(*shown) - whole.act(*shown)).norm()
    assert policy.correct(changed, whole, "ATM and OHB", *shown) > 0
    assert (changed.act(*shown) - whole.act(*shown)).norm() < 0.1 * apart
    assert float((attention.alpha - 1.25).abs().max()) < 0.1  # the moves before, which had gone wrong, were seen too
    assert abs(float(attention.beta) - 1 / 1.2) < 0.05


def test_the_page_has_every_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "JUDGED", 4)
    monkeypatch.setattr(policy, "SETTINGS", policy.SETTINGS[:1])
    text = policy.page([policy.measured(seed, 1) for seed in range(2)], 1)
    assert text.count("| ATM and OHB |") == len(policy.SETTINGS)
    assert "±" in text


def test_whoever_knows_reaches_the_goal() -> None:
    seen, moves = policy.scenes(64, Seeds(0).at("here"))
    torch.testing.assert_close(seen[:, 0] + moves.sum(1) / 10, seen[:, 1], rtol=1e-4, atol=1e-5)

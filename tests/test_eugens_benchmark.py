"""The lab of layers of random features: what can be said exactly is found, and equal numbers are equal."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import eugens

from trimtab.core.seeds import Seeds
from trimtab.testing.tiny import tiny, tokens

SIZE = 32


class Body(nn.Module):
    """Hands random states to a part of it."""

    def __init__(self, part: nn.Module):
        super().__init__()
        self.part, self.embedding = part, nn.Embedding(512, SIZE)

    def forward(self, ids: torch.Tensor, use_cache: bool) -> torch.Tensor:
        return self.part(self.embedding(ids))


def fitted(layer: nn.Module, target: nn.Module, monkeypatch: pytest.MonkeyPatch) -> tuple[nn.Module, torch.Tensor]:
    """The layer, fitted to the target without a ridge, and states to try it at."""
    monkeypatch.setattr(eugens, "RIDGE", 1e-12)
    draw = torch.Generator().manual_seed(3)
    body = Body(target)
    body.embedding.weight.data = torch.randn(512, SIZE, generator=draw)
    eugens.fitted(layer, body, target, torch.randint(512, (40, 32), generator=draw))
    return layer, torch.randn(20, SIZE, generator=draw)


def test_a_layer_of_the_same_features_is_found_exactly(monkeypatch):
    target, layer = (eugens.Eugen(SIZE, 24, 2, Seeds(5).at("eugens")) for _ in range(2))
    with torch.no_grad():
        layer.weight.zero_()
    layer, x = fitted(layer, target, monkeypatch)
    torch.testing.assert_close(layer(x), target(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("rank", [5, SIZE])
def test_a_linear_layer_of_that_rank_is_found_exactly(monkeypatch, rank):
    target, layer = (eugens.Linear(SIZE, rank, Seeds(seed).at("linear")) for seed in (1, 2))
    layer, x = fitted(layer, target, monkeypatch)
    torch.testing.assert_close(layer(x), target(x), rtol=0, atol=1e-5)


def test_layers_of_one_group_have_as_many_numbers():
    made = {name: make(Seeds(0).at("x")) for name, (make, _) in eugens.sides(256).items()}
    counts = [sum(p.numel() for p in layer.parameters()) for layer in made.values()]
    assert counts[0] == 0
    for start in (1, 5, 9):
        group = counts[start : start + 4]
        assert max(group) / min(group) < 1.02


def test_it_stands_in_a_model_and_learns():
    model = tiny("llama")
    for number, block in enumerate(model.model.layers):
        block.mlp = eugens.Eugen(model.config.hidden_size, 8, 2, Seeds(0).at("eugens", str(number)))
    model(tokens(model), labels=tokens(model)).loss.backward()
    assert all(float(block.mlp.weight.grad.norm()) > 0 for block in model.model.layers)
    assert not [name for name in model.state_dict() if "rows" in name]


def test_the_page_sets_every_side_against_the_model_as_it_came():
    sides = {"as it came": {"losses": [2.0, 3.0], "numbers": 99}, "none": {"losses": [2.5, 3.5], "numbers": 0}}
    setting = dict.fromkeys(("model", "windows", "seed", "judged_windows"), "x")
    told = eugens.page({**setting, "blocks": [4, 5], "sides": sides})
    assert "| as it came | 99 | 2.5000 |  |" in told
    assert "| none | 0 | 3.0000 | +0.5000 (+0.5000 to +0.5000) |" in told

"""Neurons that are added to the residual stream's channels cannot go without these: refused in one line, or left whole."""

import pytest
import torch
from torch import nn

from trimtab.anatomy import Anatomy
from trimtab.core.errors import TrimtabError
from trimtab.core.places import Role
from trimtab.core.recipe import Recipe
from trimtab.engine.run import run
from trimtab.host.school import school
from trimtab.testing.roundtrip import shown
from trimtab.testing.tiny import tiny


class Bound(nn.Module):
    """An MLP whose neurons meet the channels of its input, one by one."""

    def __init__(self, mlp: nn.Module, times: bool):
        super().__init__()
        self.up_proj, self.down_proj, self.act_fn, self.times = mlp.up_proj, mlp.down_proj, mlp.act_fn, times

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.act_fn(self.up_proj(x))
        return self.down_proj(inner * x if self.times else inner + x)


def bound(times: bool, blocks: range) -> nn.Module:
    model = tiny("llama", intermediate_size=64)
    for block in blocks:
        model.model.layers[block].mlp = Bound(model.model.layers[block].mlp, times)
    return model


@pytest.mark.parametrize("times", [True, False])
@pytest.mark.parametrize("expression", ["magnitude_sp(units='neuron')", "adapt_pruner_tuned(units='neuron', steps=2)"])
def test_neurons_bound_to_the_stream_are_refused_in_one_line(expression, times):
    model = bound(times, range(4))
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(TrimtabError, match=r"no separable neuron units; .* binds its width to the residual stream") as refused:
        run(model, Recipe.of(expression), shown(model), school=school)
    assert "\n" not in str(refused.value)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_where_only_some_are_bound_these_stay_whole_and_the_stream_keeps_its_width():
    model = bound(True, range(1, 2))
    bench = run(model, Recipe.of("magnitude_sp(sparsity=0.3, units='neuron')"), shown(model))
    assert "left 1 of 4 sets of channels whole, e.g. model.layers.1.mlp.neuron" in bench.notes[0]
    sites = Anatomy.of(model).sites
    shapes = {role: {s.block: s.shape for s in sites if s.role is role} for role in (Role.UP, Role.DOWN, Role.O)}
    assert shapes[Role.UP][1] == (64, 64)
    assert shapes[Role.UP][0][0] < 64
    assert {shape[0] for shape in shapes[Role.DOWN].values()} == {64}
    assert set(shapes[Role.O].values()) == {(64, 64)}

"""MixtureGrowth: two nets that do not see each other, one function as they grow, and layers that are mixed of the same."""

from itertools import pairwise

import pytest
import torch

from trimtab.anatomy import Anatomy
from trimtab.core.errors import UsageError
from trimtab.core.places import Role, Site
from trimtab.core.seeds import Seeds
from trimtab.engine import scratch
from trimtab.methods import MixtureGrowth
from trimtab.methods.scratch.mixture_growth import farthest
from trimtab.testing.tiny import tiny

SITES = [Site(f"model.layers.{block}.mlp.up_proj", Role.UP, (24, 16), block=block) for block in range(3)]


def drawn(*shape: int, name: str = "x") -> torch.Tensor:
    return torch.randn(shape, generator=Seeds(0).at(name))


def joined(method: MixtureGrowth):
    made = {site: method.begin(drawn(24, 16, name="weight") / 4, Seeds(0).at(site.name), site) for site in SITES}
    method.join(made)
    return list(made.values()), method.hook({site.path: layer for site, layer in made.items()}, 10, Seeds(0))


def test_small_nets_do_not_see_each_other():
    (layer, *_), hook = joined(MixtureGrowth(apart=0.5))
    hook.before_step(4, None)
    x = drawn(3, 16)
    torch.testing.assert_close(layer(x), x @ layer.matrix().T)
    x[:, 8:] = 0
    answer = layer(x).detach()
    assert float(answer[:, 12:].abs().max()) == 0
    own = sum(layer.mix[0, k] * layer.templates[0, k] for k in range(2)).detach()
    torch.testing.assert_close(answer[:, :12], x[:, :8] @ own.T)


@pytest.mark.parametrize("fill", ["zero", "copy", "orthogonal", "random"])
def test_they_grow_at_their_step_and_only_then(fill):
    layers, hook = joined(MixtureGrowth(apart=0.5, fill=fill))
    hook.before_step(4, None)
    before = [layer.matrix().detach().clone() for layer in layers]
    hook.before_step(5, None)
    grown = [layer.matrix().detach().clone() for layer in layers]
    for old, new in zip(before, grown, strict=True):
        assert torch.equal(new[:12, :8], old[:12, :8])
        assert torch.equal(new[12:, 8:], old[12:, 8:])
        assert torch.equal(new, old) == (fill == "zero")
        if fill == "copy":
            assert torch.equal(new[:12, 8:], old[:12, :8])
            assert torch.equal(new[12:, :8], old[12:, 8:])
    with torch.no_grad():
        layers[0].mix[2] = 7.0
    hook.before_step(6, None)
    assert float(layers[0].mix[2, 0].detach()) == 7.0


def test_new_coefficients_have_nothing_to_do_with_those_that_are_there():
    layers, hook = joined(MixtureGrowth(templates=4, shared=2))
    assert layers[0].templates is layers[1].templates
    assert layers[2].templates is not layers[0].templates
    hook.before_step(5, None)
    for first, net in ((2, 0), (3, 1)):
        rows = torch.stack([layers[0].mix[net], layers[1].mix[net], layers[0].mix[first], layers[1].mix[first]]).detach()
        torch.testing.assert_close(rows @ rows.T, torch.eye(4), atol=1e-5, rtol=0)
    rows = torch.tensor([[1.0, 0.0], [0.9, 0.1]])
    assert float((rows @ farthest(rows)).abs().max()) < 0.15


@pytest.mark.parametrize("shared", [1, 2, 3])
def test_layers_of_one_role_share_in_forward_order(shared):
    model = tiny("llama")
    method = MixtureGrowth(shared=shared)
    structures = scratch.put(Anatomy.of(model), method, Seeds(0))
    ups = [structures[f"model.layers.{block}.mlp.up_proj"].templates for block in range(4)]
    assert [a is b for a, b in pairwise(ups)] == [(n + 1) % shared != 0 for n in range(3)]
    assert ups[0] is not structures["model.layers.0.mlp.gate_proj"].templates
    banks = -(-4 // shared)
    numbers = sum(site.shape[0] * site.shape[1] for site in Anatomy.of(tiny("llama")).block_sites(0))
    trained = sum(p.numel() for name, p in model.named_parameters() if name.endswith("templates"))
    assert trained == banks * numbers  # two sets of two quarters each


def test_halves_are_needed():
    with pytest.raises(UsageError, match=r"mixture_growth: .*up_proj is 24 x 15, which has no halves"):
        MixtureGrowth().fits(Site("model.layers.0.mlp.up_proj", Role.UP, (24, 15), block=0))

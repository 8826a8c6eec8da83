"""What is special about single adapters: PiSSA's rest rounds better, DoRA keeps lengths, ALLoRA's rates, LISA's memory."""

from dataclasses import replace
from math import sqrt

import pytest
import torch
from torch.optim import AdamW

from trimtab.anatomy import Anatomy
from trimtab.core.kinds import Seen
from trimtab.core.places import Role
from trimtab.core.seeds import Seeds
from trimtab.formats import Dense
from trimtab.formats.deltas import LowRankDelta
from trimtab.methods.adapt.allora import Allora, rates
from trimtab.methods.adapt.bone import Bone
from trimtab.methods.adapt.dora import Dora
from trimtab.methods.adapt.lisa import Lisa
from trimtab.methods.adapt.pissa import Pissa
from trimtab.methods.adapt.rslora import Rslora
from trimtab.methods.adapt.s2ft import S2ft
from trimtab.tensors.lowrank import truncated
from trimtab.tensors.rounding import fit
from trimtab.testing.problems import Layer, layer
from trimtab.testing.tiny import tiny, tokens


def drawn(place: str = "x") -> Seen:
    return Seen({}, Seeds(0).at(place))


def decaying(problem: Layer) -> torch.Tensor:
    """A matrix with a few large singular values, as trained ones have."""
    u, s, vt = torch.linalg.svd(problem.weight, full_matrices=False)
    return (u * (s * 0.7 ** torch.arange(len(s)))) @ vt


def rounded(weight: torch.Tensor) -> torch.Tensor:
    return fit(weight, 3, symmetric=True).nearest(weight)


def test_the_rest_of_pissa_rounds_with_less_error_than_the_whole() -> None:
    """The nuclear norm of W - (Q(W - BA) + BA) against that of W - Q(W), which is what LoRA on a rounded base has."""
    weight = decaying(layer(64, 128))
    factors = truncated(weight, 8)
    rest = weight - factors.left @ factors.right
    assert torch.linalg.matrix_norm(rest - rounded(rest), "nuc") < 0.9 * torch.linalg.matrix_norm(weight - rounded(weight), "nuc")


def test_pissa_trains_the_largest_directions_and_is_a_lora_of_twice_the_rank() -> None:
    weight = decaying(layer(32, 48))
    delta = Pissa(rank=4).attach(Dense(weight), drawn(), layer(32, 48).site)
    u, s, vt = torch.linalg.svd(weight.double(), full_matrices=False)
    torch.testing.assert_close((delta.left @ delta.right).double(), (u[:, :4] * s[:4]) @ vt[:4], atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        delta.left.add_(0.1)
    stored = delta.portable()
    assert stored["lora_A.weight"].shape == (8, 48)
    torch.testing.assert_close((stored["lora_B.weight"] @ stored["lora_A.weight"]).double(), delta.change(), atol=1e-5, rtol=1e-5)


def test_dora_changes_lengths_and_directions_apart() -> None:
    problem = layer(24, 32)
    delta = Dora(rank=4).attach(Dense(problem.weight), drawn(), problem.site)
    with torch.no_grad():
        delta.change.left.normal_(generator=Seeds(1).at("left"))
    merged = delta.merged(Dense(problem.weight))
    assert merged is not None
    torch.testing.assert_close(merged.dense().norm(dim=1), problem.weight.norm(dim=1))
    with torch.no_grad():
        delta.magnitude.mul_(2)
    again = delta.merged(Dense(problem.weight))
    assert again is not None
    torch.testing.assert_close(again.dense(), 2 * merged.dense())


def test_a_row_of_zeros_stays_finite_in_dora() -> None:
    problem = layer(24, 32)
    weight = problem.weight.clone()
    weight[3] = 0
    delta = Dora(rank=4).attach(Dense(weight), drawn(), problem.site)
    product = problem.x @ weight.T
    assert not delta(problem.x, product, lambda: weight).any()
    with torch.no_grad():
        delta.change.left.fill_(0.1)
    assert torch.isfinite(delta(problem.x, product, lambda: weight)).all()


def test_allora_moves_rows_of_zeros_eta_times_as_fast() -> None:
    left = torch.zeros(3, 4)
    left[1] = 1.0
    torch.testing.assert_close(rates(left, 4.0).flatten(), torch.tensor([4.0, 1 / sqrt(2 + 1 / 16), 4.0]))
    for acts_on in ("step", "gradient"):
        delta = LowRankDelta(left, torch.ones(4, 8))
        hook = Allora(rank=4, eta=4.0, acts_on=acts_on).hook({layer(4, 8).site: delta})
        optimizer = torch.optim.SGD([delta.left], lr=1.0)
        delta.left.grad = torch.ones(3, 4)
        hook.before_update(0, optimizer)
        optimizer.step()
        hook.after_update(0, optimizer)
        torch.testing.assert_close(left - delta.left.detach(), rates(left, 4.0).expand(3, 4))


def test_rslora_scales_by_the_root_of_the_rank() -> None:
    problem = layer(32, 32)
    assert Rslora(rank=16, alpha=8.0).attach(Dense(problem.weight), drawn(), problem.site).scale == 2.0


def test_s2ft_keeps_only_the_activations_that_it_needs() -> None:
    """Bytes that the backward pass holds, counted as they are saved."""
    problem = layer(24, 128)
    delta = S2ft(share=0.1).attach(Dense(problem.weight), drawn(), problem.site)
    x = problem.x.clone().requires_grad_()
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        delta(x, problem.x @ problem.weight.T, lambda: problem.weight)
    floats = sum(tensor.numel() for tensor in saved if tensor.is_floating_point())
    assert len(delta.chosen) == 13
    assert floats <= 13 * (len(x) + 24), "the chosen inputs and the columns, nothing else"


@pytest.mark.parametrize(("role", "slices"), [(Role.V, "v"), (Role.UP, "vu")])
def test_s2ft_of_channels_that_are_written_changes_no_others(role: Role, slices: str) -> None:
    problem = layer(24, 16)
    site = replace(problem.site, role=role)
    method = S2ft(share=0.25, slices=slices)
    assert method.wants(site)
    assert not method.wants(replace(site, role=Role.DOWN))
    delta = method.attach(Dense(problem.weight), drawn(), site)
    with torch.no_grad():
        delta.rows.normal_(generator=Seeds(1).at("rows"))
    change = delta(problem.x, problem.x @ problem.weight.T, lambda: problem.weight)
    assert set(change.abs().amax(0).nonzero()[:, 0].tolist()) == set(delta.chosen.tolist())
    assert len(delta.chosen) == 6
    merged = delta.merged(Dense(problem.weight.double())).weight
    torch.testing.assert_close(problem.x.double() @ (merged - problem.weight.double()).T, change.double(), atol=1e-5, rtol=1e-5)


def test_bone_changes_every_block_by_itself() -> None:
    problem = layer(8, 12)
    delta = Bone(rank=4).attach(Dense(problem.weight), drawn(), problem.site)
    with torch.no_grad():
        delta.blocks.normal_(generator=Seeds(1).at("blocks"))
    merged = delta.merged(Dense(problem.weight))
    assert merged is not None
    for row in range(2):
        small = delta.blocks[row].detach()
        for column in range(3):
            cut = (slice(4 * row, 4 * row + 4), slice(4 * column, 4 * column + 4))
            block = problem.weight[cut]
            torch.testing.assert_close(merged.dense()[cut], block + block @ small + small)


def test_lisa_holds_gradients_and_states_of_few_blocks() -> None:
    """Numbers beside the weights: 3 for every one that is trained, and never those of more than the active blocks."""
    model = tiny("llama")
    anatomy = Anatomy.of(model)
    made = Lisa(active=1, every=2, outer=False)
    trained = dict(model.named_parameters())
    optimizer = AdamW([trained[name] for name in made.trains(anatomy)], lr=1e-3)
    model.requires_grad_(False)
    hook = made.hook(anatomy, Seeds(0))
    block = sum(p.numel() for p in anatomy.blocks[0].parameters())
    met = set()
    for step in range(12):
        hook.before_step(step, optimizer)
        met.update(hook.chosen(step))
        model(input_ids=tokens(model), labels=tokens(model)).loss.backward()
        optimizer.step()
        gradients = sum(p.grad.numel() for p in model.parameters() if p.grad is not None)
        states = sum(value.numel() for state in optimizer.state.values() for value in state.values() if value.ndim)
        assert gradients + states == 3 * block
        optimizer.zero_grad()
    assert len(met) > 1

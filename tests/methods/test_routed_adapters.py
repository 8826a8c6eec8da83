"""Experts of frequencies are the inverse transform; atoms are shared; no token sees a later one."""

import pytest
import torch

from trimtab.anatomy import Anatomy
from trimtab.core.errors import UsageError
from trimtab.core.kinds import Seen
from trimtab.core.recipe import Where
from trimtab.core.seeds import Seeds
from trimtab.core.trained import Delta
from trimtab.engine import adapting
from trimtab.formats import Dense
from trimtab.methods.adapt.fouriermoe import Fouriermoe, drawn
from trimtab.methods.adapt.queryable_lora import QueryableLora
from trimtab.testing.problems import layer
from trimtab.testing.tiny import tiny


def fresh(method: Fouriermoe | QueryableLora, out: int = 12, inputs: int = 20) -> Delta:
    problem = layer(out, inputs)
    return method.attach(Dense(problem.weight), Seen({}, Seeds(0).at("x")), problem.site)


def test_frequencies_are_in_bands_without_their_conjugates() -> None:
    for shape in ((12, 20), (7, 9)):
        waves = drawn(shape, 3, 10, Seeds(0).at("x"))
        size = torch.tensor(shape)
        pairs = {tuple(wave) for wave in waves.flatten(0, 1).tolist()}
        mirrored = {tuple(wave) for wave in (-waves % size).flatten(0, 1).tolist()}
        assert len(pairs) == 30
        assert all(pair == tuple((-torch.tensor(pair) % size).tolist()) for pair in pairs & mirrored)
        radius = (torch.minimum(waves, size - waves) / size).norm(dim=-1)
        assert (radius[:-1].amax(1) <= radius[1:].amin(1)).all()


@torch.no_grad()
def test_an_expert_is_the_inverse_transform_of_its_coefficients_and_exactly_real() -> None:
    delta = fresh(Fouriermoe(experts=1, frequencies=120, top=1, scale=3.0))
    delta.double()
    delta.amplitudes.normal_(generator=Seeds(0).at("amplitudes"))
    waves = drawn((12, 20), 1, 120, Seeds(0).at("fouriermoe", 12, 20, 1, 120))[0]
    spectrum = torch.zeros(12, 20, dtype=torch.complex128)
    for (u, v), cosine, sine in zip(waves.tolist(), *delta.amplitudes[:, 0].tolist(), strict=True):
        for place, value in (((u, v), complex(cosine, sine)), ((-u % 12, -v % 20), complex(cosine, -sine))):
            spectrum[place] = value
    change = 3.0 * torch.fft.ifft2(spectrum, norm="ortho")
    alone = [place for place in waves.tolist() if place[0] in (0, 6) and place[1] in (0, 10)]
    assert len(alone) in range(1, 5), "a frequency that is its own conjugate is among them, and has to be real"
    real = spectrum.clone()
    for u, v in alone:
        real[u, v] = spectrum[u, v].real
    change = 3.0 * torch.fft.ifft2(real, norm="ortho")
    assert float(change.imag.abs().max()) < 1e-14
    x = torch.eye(20, dtype=torch.float64)
    torch.testing.assert_close(delta(x, x, lambda: x).mT, change.real, atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_gates_are_shares_of_the_best_experts_and_see_the_spectrum_of_a_token() -> None:
    delta = fresh(Fouriermoe(experts=4, frequencies=40, top=2))
    delta.by_energy.copy_(50 * torch.eye(4))
    slow, fast = torch.ones(20), torch.tensor([1.0, -1.0]).repeat(10)
    gates = delta.gates(torch.stack([slow, fast]))
    torch.testing.assert_close(gates.sum(-1), torch.ones(2))
    assert ((gates > 0).sum(-1) == 2).all()
    assert gates.argmax(-1).tolist() == [0, 3], "a constant token is of the lowest band, an alternating one of the highest"


@torch.no_grad()
def test_atoms_are_one_for_the_whole_model_and_convex_mixtures_of_them_act() -> None:
    model = tiny("llama")
    deltas = adapting.attach(Anatomy.of(model), QueryableLora(rank=4, atoms=5, top=2), Where(), Seeds(0))
    memories = {id(delta.memory) for delta in deltas.values()}
    assert len(memories) == 1
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    factors = sum(p.numel() for delta in deltas.values() for p in delta.factors.parameters())
    assert trained == factors + 5 * 4 * 4 + 5 * 32 + 32 * 4
    memory = next(iter(deltas.values())).memory
    z = torch.randn(7, 4, generator=Seeds(0).at("z"))
    weights = memory.weights(z)
    torch.testing.assert_close(weights.sum(-1), torch.ones(7))
    assert ((weights > 0).sum(-1) == 2).all()
    for token in range(7):
        torch.testing.assert_close(memory(z)[token], torch.tensordot(weights[token], memory.atoms, 1) @ z[token])


@pytest.mark.parametrize("made", [Fouriermoe(experts=3, frequencies=30), QueryableLora(rank=4)])
@torch.no_grad()
def test_a_token_gets_the_same_alone_and_among_others(made: Fouriermoe | QueryableLora) -> None:
    delta = fresh(made)
    for name, parameter in delta.named_parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=Seeds(1).at(name)))
    x = torch.randn(1, 6, 20, generator=Seeds(0).at("x"))
    whole = delta(x, x, lambda: x)
    torch.testing.assert_close(whole[:, 2:3], delta(x[:, 2:3], x, lambda: x))


def test_more_gates_than_experts_and_more_frequencies_than_a_matrix_has_are_refused() -> None:
    site = layer(12, 20).site
    with pytest.raises(UsageError, match="between 2 and 120 frequencies"):
        Fouriermoe(experts=2, frequencies=121).fits(site)
    with pytest.raises(UsageError, match="top of at most 2"):
        Fouriermoe(experts=2, frequencies=20, top=3).fits(site)
    with pytest.raises(UsageError, match="use at most 2"):
        QueryableLora(rank=4, atoms=2, top=3).fits(site)

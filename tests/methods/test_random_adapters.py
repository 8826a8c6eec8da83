"""What few numbers do to frozen random ones: ranks, the start of peft, mixtures, the network written out."""

import torch

from trimtab.core.kinds import Seen
from trimtab.core.places import Role, Site
from trimtab.core.seeds import Seeds
from trimtab.core.trained import AdapterMethod, Chosen, Delta
from trimtab.formats import Dense
from trimtab.methods.adapt.nola import Nola
from trimtab.methods.adapt.randlora import Randlora, drawn
from trimtab.methods.adapt.tera import Tera, halves


def site(out: int, inputs: int) -> Site:
    return Site("model.layers.0.mlp.down_proj", Role.DOWN, (out, inputs), block=0)


def fresh(method: AdapterMethod, out: int, inputs: int, sites: tuple[Site, ...] = (), common: dict | None = None) -> Delta:
    at = site(out, inputs)
    return method.attach(Dense(torch.zeros(out, inputs)), Seen({Chosen: Chosen((at, *sites))}, Seeds(0).at("x"), common), at)


@torch.no_grad()
def trained(delta: Delta) -> torch.Tensor:
    """The change [out, in] in float64 after all that is trained got other values."""
    delta.double()
    for name, parameter in delta.named_parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=Seeds(1).at(name)))
    return delta.change()  # type: ignore[operator]


def test_the_change_of_randlora_has_full_rank_with_few_parameters() -> None:
    for shape in ((24, 40), (40, 24)):
        delta = fresh(Randlora(rank=5), *shape)
        assert torch.linalg.matrix_rank(trained(delta)) == 24
        assert sum(p.numel() for p in delta.parameters()) == 5 * (5 + 24), "five bases of rank 5 for 24 directions"


def test_randlora_is_the_sum_that_it_says() -> None:
    delta = fresh(Randlora(rank=5, alpha=10.0), 40, 24)
    change = trained(delta)
    wanted = torch.zeros(40, 24, dtype=torch.float64)
    columns = delta.b.flatten(1)
    for j in range(5):
        rows = torch.diag(delta.inner[:, j]) @ delta.a[:, 0] @ torch.diag(delta.outer[j])
        wanted += 2.0 * columns[:, j::5] @ rows
    torch.testing.assert_close(change, wanted.detach())


def test_all_matrices_of_randlora_share_the_bases_of_the_largest() -> None:
    common: dict = {}
    large = fresh(Randlora(rank=4), 40, 32, (), common)
    small = fresh(Randlora(rank=4), 16, 32, (site(40, 32),), common)
    assert small.a.data_ptr() == large.a.data_ptr()
    assert small.b.data_ptr() == large.b.data_ptr()
    a, b = drawn((site(40, 32), site(16, 32)), 4, 0, torch.device("cpu"))
    assert a.shape == (4, 1, 32)
    assert b.shape == (40, 8, 4)
    assert abs(float(a.std()) - 1) < 0.02
    assert abs(float(b.std()) - 1) < 0.02


def test_nola_mixes_random_factors_with_the_same_numbers_for_any_size() -> None:
    made = Nola(rank=3, bases=7)
    delta = fresh(made, 20, 30)
    assert sum(p.numel() for p in delta.parameters()) == 14 == sum(p.numel() for p in fresh(made, 50, 60).parameters())
    change = trained(delta)
    left = sum(c * basis for c, basis in zip(delta.of_left, delta.lefts, strict=True)).mT
    right = delta.rights[0] + sum(c * basis for c, basis in zip(delta.of_right, delta.rights[1:], strict=True))
    torch.testing.assert_close(change, (64.0 / 3) * (left @ right).detach())
    assert torch.linalg.matrix_rank(change) == 3


def test_another_key_draws_other_bases_and_the_same_key_the_same() -> None:
    for method in (Nola, Tera, Randlora):
        first, again, other = (trained(fresh(method(rank=3, key=key), 20, 30)) for key in (0, 0, 1))
        assert torch.equal(first, again)
        assert not torch.allclose(first, other)


def test_tera_is_its_network_written_out_and_has_a_high_rank() -> None:
    delta = fresh(Tera(rank=4), 24, 30)
    change = trained(delta)
    sides = [delta.get_buffer(f"side{n}") for n in range(4)]
    o1, o2, i1, i2 = (side * vector for side, vector in zip(sides, delta.vectors, strict=True))
    wanted = torch.einsum("abcd,ia,jb,kc,ld->ijkl", delta.core, o1, o2, i1, i2).reshape(24, 30)
    torch.testing.assert_close(change, wanted.detach())
    assert torch.linalg.matrix_rank(change) == 16 == sum(p.numel() for p in delta.parameters())


def test_sides_are_as_even_as_they_divide() -> None:
    assert [halves(size) for size in (1, 7, 24, 4096)] == [(1, 1), (1, 7), (4, 6), (64, 64)]

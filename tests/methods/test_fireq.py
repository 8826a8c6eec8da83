"""FireQ: scales are e4m3 numbers times one power of two, inputs go to the nearest e4m3 number, keys become even for nothing."""

import pytest
import torch

from trimtab.anatomy import Anatomy
from trimtab.core.errors import ModelError, TrimtabError, UsageError
from trimtab.core.places import Role, Site
from trimtab.core.recipe import Recipe
from trimtab.core.registry import get
from trimtab.engine.run import run
from trimtab.formats import Activations, Dense, Grouped, linear
from trimtab.host.kv.reading import rounded_kv
from trimtab.methods.quantize.fireq import group_scale
from trimtab.tensors.activations import E4M3, per_token, per_token_e4m3
from trimtab.testing.problems import layer, solve
from trimtab.testing.roundtrip import Float64, in_float64, logits, ran, shown
from trimtab.testing.tiny import tiny


def drawn(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def numbers() -> torch.Tensor:
    """All finite e4m3 numbers."""
    found = torch.arange(256, dtype=torch.uint8).view(E4M3).float()
    return found[found.isfinite()]


def test_inputs_go_to_the_nearest_e4m3_number() -> None:
    x = drawn(5, 24) * torch.logspace(-4, 2, 24)
    steps = x / x.abs().amax(1, keepdim=True) * 448
    nearest = (steps[..., None] - numbers()).abs().min(-1).values
    found = per_token_e4m3(x, 24) / x.abs().amax(1, keepdim=True) * 448
    torch.testing.assert_close((found - steps).abs(), nearest, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_nothing_becomes_nothing_and_the_largest_stays(dtype: torch.dtype) -> None:
    x = torch.tensor([[0.0, 0, 0], [3.0, -1e-3, 0.7], [1e-45, 0, 0]], dtype=dtype)
    found = per_token_e4m3(x, 3)
    assert found.dtype == dtype
    assert bool(found.isfinite().all())
    torch.testing.assert_close(found[1, 0], x[1, 0])


def test_small_numbers_keep_more_than_among_8_bit_integers() -> None:
    x = drawn(64, 48)
    x[:, 0] *= 100
    quiet = x[:, 1:]
    lost = [float((round(x)[:, 1:] - quiet).norm()) for round in (lambda x: per_token_e4m3(x, 48), lambda x: per_token(x, 8, 48))]
    assert lost[0] < lost[1] / 4


def test_gradients_pass() -> None:
    x = drawn(3, 8).requires_grad_()
    per_token_e4m3(x, 8).square().sum().backward()
    assert x.grad is not None
    assert bool((x.grad.abs() > 0).all())


@pytest.mark.parametrize("size", [1e-4, 1.0, 100.0])
def test_scales_are_e4m3_numbers_times_one_power_of_two(size: float) -> None:
    found = group_scale(drawn(9, 4, 16) * size * torch.logspace(0, 2, 9)[:, None, None])
    wanted = torch.frexp(found.flatten()).mantissa * 16
    assert torch.equal(wanted, wanted.round())  # a leading one and three bits of fraction
    assert float(found.max() / found.min()) > 10


def test_weights_are_four_bits_and_inputs_are_floating() -> None:
    problem = layer()
    answer = solve(get("fireq")(group_size=32), problem)
    assert isinstance(answer, Activations)
    assert isinstance(answer.inner, Grouped)
    assert (answer.inner.code_bits, answer.inner.group_size, answer.floating) == (4, 32, True)
    assert torch.equal(linear(problem.x, answer), linear(per_token_e4m3(problem.x, 128), answer.inner))
    plain = solve(get("rtn")(bits=4, group_size=32, symmetric=True), problem)
    assert problem.error(answer) < 1.5 * problem.error(plain)


def test_floating_numbers_have_eight_bits() -> None:
    with pytest.raises(UsageError, match="floating numbers have 8 bits"):
        Activations(Dense(drawn(5, 24)), 4, 24, floating=True)
    spec = Activations(Dense(drawn(5, 24)), 4, 24).spec() | {"floating": True}
    with pytest.raises(ModelError, match="floating numbers have 8 bits"):
        Activations.layout(spec)
    with pytest.raises(UsageError, match="no layer of its own"):
        get("fireq")().fits(Site("experts", Role.UP, (8, 64), 0, index=1))


@pytest.mark.parametrize("family", ["llama", "qwen2", "mixtral"])
def test_even_keys_change_nothing(family: str) -> None:
    with Float64():
        model = in_float64(family)
        keys = [site for site in Anatomy.of(model).sites if site.role is Role.K]
        before = logits(model), [Anatomy.of(model).weight(key).dense().clone() for key in keys]
        run(model, Recipe.of("fireq_keys"), shown(model))
        assert (logits(model) - before[0]).norm() / before[0].norm() < 1e-9
        moved = [float((Anatomy.of(model).weight(key).dense() - old).norm()) for key, old in zip(keys, before[1], strict=True)]
        assert min(moved) > 1e-3


def test_keys_in_few_bits_lose_less_when_pairs_are_even() -> None:
    """A pair of every key head made loud, and its queries quiet: the function is as before, a 4-bit cache is not."""
    lost = []
    for recipe in ("", "fireq_keys"):
        model = tiny("llama").eval()
        ids = torch.randint(0, model.config.vocab_size, (2, 48), generator=torch.Generator().manual_seed(0))
        width = model.config.head_dim
        for block in model.model.layers:
            key, query = (
                m.weight.data.view(-1, width, m.weight.shape[1]) for m in (block.self_attn.k_proj, block.self_attn.q_proj)
            )
            for channel in (1, 1 + width // 2):
                key[:, channel] *= 32
                query[:, channel] /= 32
        if recipe:
            run(model, Recipe.of(recipe), shown(model))
        with torch.no_grad():
            whole = model(ids).logits
            with rounded_kv(model, 4):
                lost.append(float((model(ids).logits - whole).norm()))
    assert lost[1] < lost[0] / 2


def test_keys_behind_a_norm_or_fused_are_refused() -> None:
    with pytest.raises(ModelError, match=r"keys go through model\.layers\.0\.self_attn\.q_norm"):
        ran("qwen3", Recipe.of("fireq_keys"))
    with pytest.raises(TrimtabError, match="no query and key matrices"):
        ran("phi3", Recipe.of("fireq_keys"))

"""Probes of matrices and activations, at the limits where the answer is known: spectra, outliers, rounding, LoRA."""

import copy
import math
from fractions import Fraction

import pytest
import torch
from probe_toy import LENGTH, WIDTH, WINDOWS, Toy, found, on_tiny
from torch import Tensor

from trimtab.anatomy import Anatomy
from trimtab.core.registry import get
from trimtab.engine.probe import probe
from trimtab.methods.probe.lora_limits import degree, log_features
from trimtab.tensors.divergence import kl
from trimtab.testing.tiny import tiny, tokens

# top_singular


def test_sigma_max_is_that_of_the_decomposition() -> None:
    model = tiny("llama")
    seen = on_tiny(get("top_singular")(iterations=2000), model)
    for role, path in (("q", "self_attn.q_proj"), ("o", "self_attn.o_proj"), ("up", "mlp.up_proj"), ("down", "mlp.down_proj")):
        exact = [float(torch.linalg.svdvals(b.get_submodule(path).weight.detach().double())[0]) for b in model.model.layers]
        assert seen[f"sigma_max {role}"] == pytest.approx(exact, rel=1e-6)
    roles = [seen[f"sigma_max {r}"] for r in ("q", "k", "v", "o", "gate", "up", "down")]
    assert seen["sigma_max"] == [max(values) for values in zip(*roles, strict=True)]


def test_orthogonal_matrices_have_full_rank_and_no_gain() -> None:
    model = tiny("llama", num_key_value_heads=4, intermediate_size=64)
    with torch.no_grad():
        for site in (anatomy := Anatomy.of(model)).sites:
            if site.block is not None:
                torch.nn.init.orthogonal_(anatomy.module(site).weight, generator=torch.Generator().manual_seed(0))
    seen = on_tiny(get("top_singular")(), model)
    assert seen["sigma_max"] == pytest.approx([1] * 4, rel=1e-5)
    assert seen["stable rank"] == pytest.approx([64] * 4, rel=1e-4)
    assert seen["effective rank"] == pytest.approx([1] * 4, rel=1e-4)
    assert seen["gain"] == pytest.approx([1] * 4, rel=1e-4)
    assert seen["gain on noise"] == pytest.approx([1] * 4, rel=1e-4)
    assert "effective rank" not in on_tiny(get("top_singular")(effective=False), model)


# feature_spectrum


def spread_out(power: float = 0.0) -> Tensor:
    """Centred tokens behind a first one that does not count, with singular values that fall like rank ** -power."""
    sizes = torch.arange(1, WIDTH + 1) ** -power
    rows = torch.cat([torch.diag(sizes), -torch.diag(sizes)])
    return torch.cat([torch.full((1, WIDTH), 1e4), rows])[None].repeat(2, 1, 1)


def test_equal_directions_fill_the_spectrum() -> None:
    seen = found(get("feature_spectrum")(), Toy([lambda h: h], spread_out()))
    assert seen["spread before"] == pytest.approx([1])
    assert seen["effective rank before"] == pytest.approx([WIDTH])
    line = torch.arange(-8.0, 9.0)[:, None] * torch.ones(WIDTH)
    assert found(get("feature_spectrum")(), Toy([lambda h: h], line[None].repeat(2, 1, 1)))["spread before"] == pytest.approx([0])


def test_a_head_that_squares_the_strengths_has_power_two() -> None:
    squared = Toy([lambda h: h], spread_out(1.0), after=lambda h: h * h.abs())
    seen = found(get("feature_spectrum")(), squared)
    assert seen["power"] == pytest.approx([2])
    assert seen["spread before"][0] > seen["spread after"][0]
    assert found(get("feature_spectrum")(), Toy([lambda h: h], spread_out(1.0)))["power"] == pytest.approx([1])


# outliers


def test_a_planted_outlier_is_found_where_it_is() -> None:
    entering = torch.ones(WINDOWS, LENGTH, WIDTH)
    entering[:, ::2] = -1
    entering[1, 3, 2], entering[:, 0, 5] = -5000, 9000
    seen = {f.measurements[0].name: f for f in get("outliers")().measure(Toy([lambda h: h], entering))}
    (largest,) = seen["largest"].measurements
    assert (largest.value, largest.setting) == (9000, {"block": 0, "window": 0, "position": 0, "channel": 5})
    assert "channel 5 (1 blocks), at the first token in 1 of 1 blocks" in seen["largest"].implies
    assert seen["max/median"].measurements[0].value == (5000 + 3) / 4
    assert seen["max/median first too"].measurements[0].value == 9000
    assert seen["massive"].measurements[0].value == 5 / 4
    even = found(get("outliers")(), Toy([lambda h: h], torch.tensor([1.0, -1.0]).repeat(2, LENGTH, WIDTH // 2)))
    assert even["kurtosis"] == pytest.approx([1])
    assert even["massive"] == [0]


def test_the_loudest_input_of_a_block_is_seen() -> None:
    model = tiny("llama")
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight[7] *= 1000  # one loud input of the down projection
    seen = on_tiny(get("outliers")(), model)["inputs"]
    assert seen[2] > 20 * max(seen[0], seen[1], seen[3])


# sensitivity


def test_many_bits_cost_nothing_and_few_cost_more() -> None:
    seen = {bits: on_tiny(get("sensitivity")(bits=bits), tiny("llama")) for bits in (2, 4, 12)}
    assert max(seen[12]["KL"]) < 1e-5
    assert max(seen[12]["output error"]) < 1e-5
    for few, many in zip(seen[2]["KL"], seen[4]["KL"], strict=True):
        assert few > 3 * many > 0


def test_sensitivity_is_that_of_the_model_with_this_block_rounded() -> None:
    model, made = tiny("llama"), get("sensitivity")(bits=3, group_size=32, positions=LENGTH)
    ids, changed = tokens(model, WINDOWS, LENGTH), copy.deepcopy(model)
    anatomy = Anatomy.of(changed)
    with torch.no_grad():
        for site in anatomy.block_sites(2):
            module = anatomy.module(site)
            module.weight.copy_(made.nearest(module.weight.detach().clone(), site))
        expected = kl(model(ids).logits[:, 1:].flatten(0, 1), changed(ids).logits[:, 1:].flatten(0, 1)).mean()
    before, after = on_tiny(made, model), on_tiny(made, changed)
    assert before["KL"][2] == pytest.approx(float(expected), rel=1e-3)
    assert after["output error"][2] < 0.01 * before["output error"][2]  # what is on a grid stays there, or nearly


# lora_limits


@pytest.mark.parametrize("bound", [0.01, 0.5, 3.0, 20.0])
def test_the_degree_is_the_least_that_reaches_the_error(bound: float) -> None:
    def worst(g: int) -> float:
        """Largest relative error of the Taylor polynomial on [-bound, bound]: at the left end, where exp is smallest."""
        terms = [Fraction(-bound) ** k / math.factorial(k) for k in range(g + 1)]
        return abs(float(sum(terms)) * math.exp(bound) - 1)

    g = degree(bound, 1e-3)
    assert worst(g) <= 1e-3
    # The bound on the remainder adds the sizes of alternating terms, so it may ask for a degree or two too many.
    assert g <= 3 or worst(g - 3) > 1e-3


def test_monomials_are_counted() -> None:
    assert degree(0.0, 0.01) == 0
    assert log_features(3, 2) == pytest.approx(1)  # 1, x, y, z and six squares and products
    assert log_features(64, 0) == 0


def test_gamma_is_the_largest_query_or_key() -> None:
    model = tiny("llama")
    ids, sizes = tokens(model, WINDOWS, LENGTH), [[0.0] * WINDOWS for _ in range(2)]
    expected: list[list[list[float]]] = [[], []]
    for block, layer in enumerate(model.model.layers[:2]):
        for window in range(WINDOWS):
            held: list[Tensor] = []
            handle = layer.self_attn.q_proj.register_forward_pre_hook(lambda m, args, held=held: held.append(args[0][0]))
            with torch.no_grad():
                model(ids[window : window + 1])
                q = layer.self_attn.q_proj.weight @ held[0].T  # [out, tokens]
                k = layer.self_attn.k_proj.weight @ held[0].T
            handle.remove()
            heads = torch.maximum(q.reshape(4, -1).abs().amax(1), k.reshape(2, -1).abs().amax(1).repeat_interleave(2))
            sizes[block][window] = float(heads.max())
            expected[block].append((16**0.25 * heads / math.sqrt(math.log(LENGTH))).tolist())
    seen = on_tiny(get("lora_limits")(), model)
    for block in range(2):
        assert seen["Gamma largest"][block] == pytest.approx(sum(map(max, expected[block])) / WINDOWS, rel=1e-5)
        assert seen["Gamma least"][block] == pytest.approx(sum(map(min, expected[block])) / WINDOWS, rel=1e-5)
    assert seen["fast heads"] == [0] * 4


def test_attention_that_looks_nowhere_is_fast() -> None:
    model = tiny("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.zero_()
            layer.self_attn.k_proj.weight.zero_()
    (findings,) = probe(model, tokens(model, WINDOWS, LENGTH), [get("lora_limits")()])
    seen = {f.measurements[0].name: f for f in findings}
    assert [m.value for m in seen["Gamma largest"].measurements] == [0] * 4
    assert seen["features/L"].measurements[0].value == pytest.approx(-math.log10(LENGTH))
    assert "the fast path applies to 16 of 16 heads" in seen["Gamma largest"].implies


@pytest.mark.parametrize(("family", "why"), [("phi3", "fused"), ("qwen3", "pass a norm"), ("gpt2", "fused")])
def test_heads_that_cannot_be_read_are_not_guessed(family: str, why: str) -> None:
    model = tiny(family)
    (findings,) = probe(model, tokens(model, WINDOWS, LENGTH), [get("lora_limits")()])
    assert not any(finding.measurements for finding in findings)
    assert findings[0].implies.startswith("not measured: ")
    assert why in findings[0].implies

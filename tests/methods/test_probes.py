"""Every probe at the limits where its answer is known, on a toy whose blocks are plain functions or on a tiny real model."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from trimtab.anatomy import Anatomy
from trimtab.anatomy.probe import still
from trimtab.core.errors import DataError, ModelError, RecipeError
from trimtab.core.kinds import Finding, ProbeMethod
from trimtab.core.places import Role
from trimtab.core.recipe import Recipe
from trimtab.core.registry import get
from trimtab.core.seeds import Seeds
from trimtab.engine.probe import probe, read
from trimtab.engine.run import run
from trimtab.methods.probe.lora_limits import degree, log_features
from trimtab.methods.probe.update_geometry import Known, spearman
from trimtab.tensors.divergence import kl
from trimtab.testing.roundtrip import shown
from trimtab.testing.tiny import ARCHITECTURES, tiny, tokens

WINDOWS, LENGTH, WIDTH = 4, 24, 8
Block = Callable[[Tensor], Tensor]


class Toy:
    """A `Subject` of blocks that are functions [length, width] -> [length, width]; the head is a random matrix."""

    def __init__(self, blocks: Sequence[Block], entering: Tensor | None = None, after: Block = lambda h: h):
        draw = Seeds(0).at("toy")
        entering = torch.randn(WINDOWS, LENGTH, WIDTH, generator=draw) if entering is None else entering
        self._functions, self._after = blocks, after
        self._head = torch.randn(2 * WIDTH, entering.shape[-1], generator=draw)
        self._states = [[window] for window in entering]
        for states in self._states:
            for block in blocks:
                states.append(block(states[-1]))
        self.windows, self.generator = len(entering), draw
        self.anatomy: Any = SimpleNamespace(blocks=blocks, block_sites=lambda block: ())

    def blocks(self) -> Iterator[int]:
        yield from range(len(self._functions))

    def hidden(self, block: int, window: int) -> Tensor:
        return self._states[window][block]

    def inputs(self, block: int, window: int, sites: Any) -> dict[Any, Tensor]:
        return {}

    def drive(self, block: int, window: int, hidden: Tensor, instead: Any = None) -> Tensor:
        return self._functions[block](hidden)

    def onward(self, block: int, window: int, hidden: Tensor) -> Tensor:
        for function in self._functions[block:]:
            hidden = function(hidden)
        return hidden

    def head_input(self, hidden: Tensor) -> Tensor:
        return self._after(hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        return self._after(hidden) @ self._head.T


def found(method: ProbeMethod, subject: Any) -> dict[str, list[float]]:
    """Name -> values, block by block."""
    return {f.measurements[0].name: [m.value for m in f.measurements] for f in method.measure(subject) if f.measurements}


def on_tiny(method: ProbeMethod, model: Any) -> dict[str, list[float]]:
    (findings,) = probe(model, tokens(model, WINDOWS, LENGTH), [method])
    return {f.measurements[0].name: [m.value for m in f.measurements] for f in findings if f.measurements}


def causal_mean(hidden: Tensor) -> Tensor:
    """Every token is mixed with all before it."""
    return hidden + hidden.cumsum(0) / torch.arange(1, len(hidden) + 1)[:, None]


# What the runner hands out.


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_what_is_read_is_what_the_model_says(family: str) -> None:
    model = tiny(family)
    ids = tokens(model, 2, LENGTH)
    with still(model):
        subject, whole = read(model, ids), model(ids, use_cache=False).logits
        depth = len(subject.anatomy.blocks)
        for window in range(2):
            assert torch.equal(subject.onward(1, window, subject.hidden(1, window)), subject.hidden(depth, window))
            assert torch.equal(subject.drive(2, window, subject.hidden(2, window)), subject.hidden(3, window))
            last = subject.hidden(depth, window)
            assert torch.allclose(subject.logits(last), whole[window], atol=1e-5)
            assert torch.allclose(subject.logits(last[5:9]), whole[window, 5:9], atol=1e-5)


def test_the_input_of_the_head_is_what_the_head_multiplies() -> None:
    model = tiny("llama")
    with still(model):
        subject = read(model, tokens(model, 2, LENGTH))
        last = subject.hidden(4, 0)
        assert torch.allclose(subject.head_input(last) @ model.lm_head.weight.T, subject.logits(last), atol=1e-5)
        assert torch.equal(subject.head_input(last), model.model.norm(last))


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "gpt_oss"])
def test_other_matrices_are_tried_without_touching_the_models_own(family: str) -> None:
    model = tiny(family)
    with still(model):
        subject = read(model, tokens(model, 2, LENGTH))
        anatomy = subject.anatomy
        sites = [site for site in anatomy.block_sites(1) if site.role is not Role.ROUTER]
        entering, leaving = subject.hidden(1, 0), subject.hidden(2, 0)
        same = subject.drive(1, 0, entering, {site: anatomy.weight(site).dense() for site in sites})
        assert torch.allclose(same, leaving, atol=1e-5)
        other = subject.drive(1, 0, entering, {site: 2 * anatomy.weight(site).dense() for site in sites})
        assert (other - leaving).norm() > 0.1 * leaving.norm()
        assert torch.equal(subject.drive(1, 0, entering), leaving)
        assert not any("forward" in vars(module) for module in model.modules())


def test_a_block_whose_outputs_are_silenced_does_nothing() -> None:
    """Biases included: gpt2 has them everywhere."""
    for family in ("llama", "gpt2", "mixtral"):
        model = tiny(family)
        with still(model):
            subject = read(model, tokens(model, 1, LENGTH))
            ends = [site for site in subject.anatomy.block_sites(2) if site.role in (Role.O, Role.DOWN)]
            silent = subject.drive(2, 0, subject.hidden(2, 0), dict.fromkeys(ends))
            assert torch.equal(silent, subject.hidden(2, 0))


def test_a_router_is_no_plain_product() -> None:
    model = tiny("mixtral")
    with still(model):
        subject = read(model, tokens(model, 1, LENGTH))
        router = next(site for site in subject.anatomy.block_sites(0) if site.role is Role.ROUTER)
        with pytest.raises(ModelError, match="not a plain product"):
            subject.drive(0, 0, subject.hidden(0, 0), {router: subject.anatomy.weight(router).dense()})


def test_a_packed_model_is_probed_like_any_other() -> None:
    model = tiny("llama")
    run(model, Recipe.of("rtn(bits=8, group_size=0)"), shown(model))
    before, after = (on_tiny(get("sensitivity")(bits=2), m) for m in (tiny("llama"), model))
    assert before["KL"] == pytest.approx(after["KL"], rel=0.2)


def test_what_cannot_be_read_is_refused() -> None:
    model = tiny("llama")
    with pytest.raises(DataError, match="longer windows"):
        probe(model, tokens(model, 2, 4), [get("outliers")()])
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[0, 0] = math.inf
    with pytest.raises(ModelError, match="not finite"):
        probe(model, tokens(model, 2, LENGTH), [get("outliers")()])
    with pytest.raises(RecipeError, match="trimtab probe MODEL outliers"):
        Recipe.of("outliers")


def test_a_finding_is_a_mean_over_windows_with_its_error() -> None:
    found = Finding.of("a", "b", torch.tensor([[1.0, 3.0], [5.0, 5.0]]), 7)
    assert [(m.value, m.stderr, m.n, m.setting) for m in found.measurements] == [(2, 1, 7, {"block": 0}), (5, 0, 7, {"block": 1})]
    assert math.isnan(Finding.of("a", "b", torch.tensor([[1.0]]), 1).measurements[0].stderr)
    assert Finding.of("a", "b", torch.tensor([1.0]), 1).measurements[0].stderr == 0
    ranked = Finding.of("a", "b", torch.tensor([3.0, 1.0, 2.0, 1.0, 9.0]), 1)
    assert (ranked.lowest(), ranked.highest()) == ("1, 3", "0, 4")
    some = Finding.columns([[{"a": 1.0}, {"a": 2.0}], [{}, {}]], {"a": ("u", 1), "b": ("u", 1)})
    assert [m.setting["block"] for m in some["a"].measurements] == [0]
    assert some["b"].measurements == ()


# update_geometry


def test_a_scalar_block_is_all_tokenwise() -> None:
    made = get("update_geometry")(tokenwise="scalar", damping=0.0)
    seen = found(made, Toy([lambda h: 1.5 * h, lambda h: 0.5 * h]))
    for name in ("energy scalar", "energy diagonal", "energy first too", "rest"):
        assert seen[name] == pytest.approx([0, 0], abs=1e-6)
    for name in ("cos(u,t)", "cos(u,t) first too"):
        assert seen[name] == pytest.approx([1, 1], abs=1e-6)
    assert seen["KL"] == pytest.approx([0, 0], abs=1e-9)


def test_each_class_of_maps_explains_what_it_can_and_no_more() -> None:
    draw = torch.Generator().manual_seed(1)
    diagonal, mixing = torch.randn(WIDTH, generator=draw), torch.randn(WIDTH, WIDTH, generator=draw)
    noise = torch.randn(LENGTH, WIDTH, generator=draw)
    blocks = [lambda h: h * diagonal, lambda h: h @ mixing, lambda h: h + noise.roll(int(h.sum() * 1000) % LENGTH, 0)]
    seen = found(get("update_geometry")(damping=0.0), Toy(blocks))
    assert seen["energy scalar"][0] > 0.1
    assert seen["energy diagonal"][0] == pytest.approx(0, abs=1e-6)
    assert seen["energy diagonal"][1] > 0.1
    assert seen["energy linear"][:2] == pytest.approx([0, 0], abs=1e-6)
    assert min(seen[f"energy {name}"][2] for name in ("scalar", "diagonal", "low_rank", "linear")) > 0.9  # nothing to learn
    assert seen["cos(u,r)"][2] > 0.7


def test_all_neighbours_and_full_rank_are_the_linear_map() -> None:
    draw = torch.Generator().manual_seed(2)
    known = Known(*(torch.randn(2, 40, WIDTH, generator=draw, dtype=torch.float64)))
    x = torch.randn(5, WIDTH, generator=draw, dtype=torch.float64)
    made = get("update_geometry")(neighbours=40, rank=WIDTH, damping=0.0)
    assert torch.allclose(made.update("low_rank", x, known), made.update("linear", x, known), atol=1e-9)
    expected = x @ torch.linalg.lstsq(known.x, known.u).solution
    assert torch.allclose(made.update("linear", x, known), expected, atol=1e-9)


def test_neighbours_come_from_other_windows() -> None:
    """In a block that adds what no other window has, a fit that saw the judged tokens would look perfect."""
    draw = torch.Generator().manual_seed(3)
    entering = torch.randn(WINDOWS, LENGTH, WIDTH, generator=draw)
    table = {float(window[0, 0]): torch.randn(LENGTH, WIDTH, generator=draw) for window in entering}
    seen = found(get("update_geometry")(neighbours=2, rank=1), Toy([lambda h: h + table[float(h[0, 0])]], entering))
    assert seen["energy low_rank"][0] > 0.9
    with pytest.raises(DataError, match="at least 2 windows"):
        get("update_geometry")().measure(Toy([lambda h: h], entering[:1]))


def test_rank_correlation() -> None:
    rising = torch.tensor([1.0, 2.0, 5.0, 9.0])
    assert spearman(rising, rising.exp()) == pytest.approx(1)
    assert spearman(rising, -rising) == pytest.approx(-1)
    assert spearman(rising, torch.ones(4)) == 0
    assert spearman(rising, torch.tensor([1.0, 3.0, 3.0, 4.0])) == pytest.approx(3 / math.sqrt(10))  # ranks 1, 2.5, 2.5, 4


# depth_efficiency


def test_an_identity_is_skipped_without_effect() -> None:
    seen = found(get("depth_efficiency")(), Toy([causal_mean, lambda h: h, causal_mean]))
    for name in ("skip KL", "skip change", "adds", "adds max", "later max"):
        assert seen[name][1] == 0, name
        assert seen[name][0] > 0, name
    assert len(seen["later max"]) == 2  # nothing comes behind the last
    assert seen["lens KL"][-1] == 0
    assert seen["lens top 5"][-1] == 1


def test_blocks_that_add_constants_do_not_depend_on_each_other() -> None:
    shifts = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(4))
    seen = found(get("depth_efficiency")(), Toy([lambda h, s=s: h + s for s in shifts]))
    assert seen["later max"] == pytest.approx([0, 0], abs=1e-5)
    assert min(seen["skip KL"]) > 0
    assert found(get("depth_efficiency")(), Toy([lambda h: 3 * h]))["adds"] == pytest.approx([2])
    assert found(get("depth_efficiency")(), Toy([lambda h: h / 2]))["cos(u,h)"] == pytest.approx([-1])


def test_only_what_mixes_tokens_acts_on_the_future() -> None:
    made = get("depth_efficiency")(effect="future")
    alone = found(made, Toy([torch.tanh, torch.sin]))
    assert alone["skip KL"] == [0, 0]
    assert alone["later max"] == [0]
    mixed = found(made, Toy([torch.tanh, causal_mean]))
    assert mixed["skip KL"][0] > 0
    assert mixed["skip KL"][1] == 0  # nobody reads what the last block says of earlier tokens
    assert mixed["later max"][0] > 0


@pytest.mark.parametrize(("family", "attention"), [("llama", "self_attn"), ("gpt_neox", "attention"), ("opt", "self_attn")])
def test_attention_and_mlp_are_told_apart(family: str, attention: str) -> None:
    """One after the other and side by side, against what a hook on the attention module sees."""
    model = tiny(family)
    ids, contributions = tokens(model, WINDOWS, LENGTH), []
    with still(model):
        subject = read(model, ids)
        for number, block in enumerate(subject.anatomy.blocks):
            held: list[Tensor] = []
            handle = getattr(block, attention).register_forward_hook(lambda m, a, out, held=held: held.append(out[0]))
            subject.drive(number, 0, subject.hidden(number, 0))
            handle.remove()
            a, h = held[0][0, 1:], subject.hidden(number, 0)[1:]
            m = subject.hidden(number + 1, 0)[1:] - h - a
            contributions.append((a.norm(dim=-1) / h.norm(dim=-1), m.norm(dim=-1) / (h + a).norm(dim=-1)))
    (findings,) = probe(model, ids[:1], [get("depth_efficiency")()])
    seen = {f.measurements[0].name: [m.value for m in f.measurements] for f in findings}
    assert seen["attention"] == pytest.approx([float(a.mean()) for a, _ in contributions], rel=1e-4)
    assert seen["mlp"] == pytest.approx([float(m.mean()) for _, m in contributions], rel=1e-4)


def test_biases_of_experts_are_not_taken_for_attention() -> None:
    assert "attention" not in on_tiny(get("depth_efficiency")(), tiny("gpt_oss"))
    assert "attention" in on_tiny(get("depth_efficiency")(), tiny("mixtral"))


def test_an_identity_block_of_a_real_model_is_the_cheapest() -> None:
    model = tiny("llama")
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight.zero_()
        model.model.layers[1].mlp.down_proj.weight.zero_()
    (findings,) = probe(model, tokens(model, WINDOWS, LENGTH), [get("depth_efficiency")()])
    assert findings[0].measurements[1].value == 0
    assert findings[0].implies.startswith("cheapest blocks to remove: 1, ")


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


def test_probes_share_one_reading() -> None:
    """And none of them leaves it other than it was."""
    model = tiny("llama")
    ids = tokens(model, WINDOWS, LENGTH)
    alone = [probe(model, ids, [get(id)()])[0] for id in ("sensitivity", "outliers")]
    assert probe(model, ids, [get("sensitivity")(), get("outliers")()]) == alone

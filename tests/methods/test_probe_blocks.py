"""Probes of what blocks do, at the limits where the answer is known: geometry of updates, depth, dependence."""

import math

import pytest
import torch
from probe_toy import LENGTH, WIDTH, WINDOWS, Toy, causal_mean, found, on_tiny
from torch import Tensor

from trimtab.anatomy.probe import still
from trimtab.core.errors import DataError
from trimtab.core.registry import get
from trimtab.engine.probe import probe, read
from trimtab.methods.probe.update_geometry import Known, spearman
from trimtab.testing.tiny import tiny, tokens

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

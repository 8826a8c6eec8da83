"""CorDA discards what it says and begins as the model; WaRA's two-dimensional transform cancels; HUT multiplies."""

import pytest
import torch

from trimtab.anatomy import Anatomy
from trimtab.core.errors import CalibrationError
from trimtab.core.kinds import Seen
from trimtab.core.recipe import Where
from trimtab.core.seeds import Seeds
from trimtab.engine import adapting
from trimtab.formats import Dense
from trimtab.methods.adapt.corda import Corda, oriented
from trimtab.methods.adapt.hut import Hut
from trimtab.methods.adapt.wara import Wara
from trimtab.stats import Gram
from trimtab.tensors.haar import bands, joined
from trimtab.testing.problems import Layer, layer
from trimtab.testing.tiny import tiny, tokens


def gram(problem: Layer) -> torch.Tensor:
    return problem.x.T @ problem.x / len(problem.x)


def test_all_directions_together_are_the_matrix() -> None:
    problem = layer(24, 32)
    left, right = oriented(problem.weight, gram(problem), 0.01)
    torch.testing.assert_close(left @ right, problem.weight.double())


def test_without_the_last_directions_outputs_change_less_than_without_those_of_the_matrix_alone() -> None:
    """The card's check: what is thrown away of W C hurts less than what is thrown away of W."""
    problem = layer(32, 32)
    left, right = oriented(problem.weight, gram(problem), 0.01)
    u, s, vt = torch.linalg.svd(problem.weight.double())
    for gone in (4, 12):
        informed, plain = left[:, :-gone] @ right[:-gone], (u[:, :-gone] * s[:-gone]) @ vt[:-gone]
        assert problem.error(Dense(informed.float())) < 0.5 * problem.error(Dense(plain.float()))


def test_both_modes_take_their_part_out_of_the_base_and_begin_as_it() -> None:
    problem = layer(24, 32)
    seen = Seen({Gram: gram(problem)}, Seeds(0).at("x"))
    left, right = oriented(problem.weight, seen[Gram], 0.01)
    heard = {}
    for mode, kept in (("ipm", slice(None, 4)), ("kpm", slice(-4, None))):
        delta = Corda(rank=4, mode=mode).attach(Dense(problem.weight), seen, problem.site)
        part = (left[:, kept] @ right[kept]).float()
        torch.testing.assert_close((delta.left @ delta.right).detach(), part)
        product = problem.x @ problem.weight.T
        assert not delta(problem.x, product, lambda: problem.weight).any()
        heard[mode] = float((problem.x @ part.T).norm())
        with torch.no_grad():
            delta.left.zero_()
        torch.testing.assert_close(delta.change().float(), -part, msg="without the adapter the part is gone")
    assert heard["kpm"] < 0.1 * heard["ipm"]


def test_inputs_are_those_that_a_forward_pass_has() -> None:
    """The engine's stream against a hook, with what was shown in several pieces."""
    model, seen = tiny("llama"), []
    ids = tokens(model)
    anatomy = Anatomy.of(model)
    path = next(site.path for site in anatomy.sites if site.block == 1)
    handle = model.get_submodule(path).register_forward_hook(lambda _, given, __: seen.append(given[0].flatten(0, 1)))
    with torch.no_grad():
        model(ids)
    handle.remove()
    deltas = adapting.attach(anatomy, Corda(rank=2), Where(), Seeds(0), [row[None] for row in ids])
    weight = model.get_submodule(path).weight.detach()
    left, right = oriented(weight, seen[0].T @ seen[0] / len(seen[0]), 0.01)
    torch.testing.assert_close(deltas[path].left @ deltas[path].right, (left[:, :2] @ right[:2]).float(), atol=1e-4, rtol=1e-3)


def test_inputs_of_zeros_decide_nothing_and_are_named() -> None:
    model = tiny("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight.zero_()
    with pytest.raises(CalibrationError, match=r"corda at .*: the gram matrix is zero"):
        adapting.attach(Anatomy.of(model), Corda(rank=2), Where(), Seeds(0), [tokens(model)])


def test_haar_keeps_lengths_and_has_its_transpose_for_an_inverse() -> None:
    x = torch.randn(5, 12, generator=Seeds(0).at("x"), dtype=torch.float64)
    torch.testing.assert_close(joined(*bands(x)), x, atol=1e-14, rtol=0)
    torch.testing.assert_close(torch.cat(bands(x), -1).norm(), x.norm())


@torch.no_grad()
def test_a_transform_over_tokens_on_top_of_wara_cancels() -> None:
    """The card's identity: two-dimensional bands of tokens and features, the same map for all four, and back."""
    problem = layer(24, 32)
    delta = Wara(rank=3, alpha=6.0).attach(Dense(problem.weight), Seen({}, Seeds(0).at("x")), problem.site).double()
    delta.left.normal_(generator=Seeds(0).at("left"))
    x = problem.x.double()
    rows = [[(band @ delta.right.mT) @ delta.left.mT for band in bands(half.mT.contiguous())] for half in bands(x.mT)]
    whole = joined(*(joined(*half).mT for half in rows)).mT
    torch.testing.assert_close(delta(x, x, lambda: x), 2.0 * whole, atol=1e-13, rtol=0)
    torch.testing.assert_close(delta(x, x, lambda: x), x @ delta.change().mT, atol=1e-13, rtol=0)
    assert torch.linalg.matrix_rank(delta.change()) == 6, "twice the rank"
    assert delta.left.numel() + delta.right.numel() == 3 * (24 + 32) // 2, "half the parameters"


@torch.no_grad()
def test_hut_changes_every_weight_in_proportion_with_a_high_rank() -> None:
    problem = layer(24, 32)
    weight = problem.weight.clone()
    weight[3, 5] = 0
    delta = Hut(rank=2).attach(Dense(weight), Seen({}, Seeds(0).at("x")), problem.site)
    delta.factor.left.normal_(generator=Seeds(0).at("left"))
    merged = delta.merged(Dense(weight)).dense()
    torch.testing.assert_close(merged, weight * (1 + delta.factor.left @ delta.factor.right))
    assert merged[3, 5] == 0
    assert torch.linalg.matrix_rank(merged - weight) == 24

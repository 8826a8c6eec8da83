"""RTN, GPTQ and HLQ against their definitions, and against each other where a setting makes them equal."""

import pytest
import torch

from trimtab.core.kinds import Seen
from trimtab.core.registry import get
from trimtab.formats import Dense, Masked
from trimtab.stats import Gram
from trimtab.testing.problems import Layer, layer, seen, solve

WHITE = torch.eye(128).repeat(2, 1)  # inputs whose gram is a multiple of the identity


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", [0, 32])
def test_rtn_is_within_half_a_step(bits: int, group_size: int, symmetric: bool) -> None:
    problem = layer()
    answer = solve(get("rtn")(bits=bits, group_size=group_size, symmetric=symmetric), problem)
    step = answer.scale.float().repeat_interleave(group_size or 128, dim=1)
    # Half a step, and what float16 scales and the integer zero take at the ends of the range.
    room = step * (1.0 if symmetric else 0.5 + 2**bits * 2.0**-10)
    ends = (answer.codes == 0) | (answer.codes == 2**bits - 1)
    error = (answer.dense() - problem.weight).abs()
    assert (error[~ends] <= 0.5001 * step[~ends]).all()
    assert (error[ends] <= (room + 0.5 * step)[ends]).all()


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("group_size", [0, 64])
@pytest.mark.parametrize("clip", [False, True])
def test_gptq_on_white_inputs_is_rtn(bits: int, group_size: int, clip: bool) -> None:
    problem = Layer(layer().weight, WHITE)
    same = {"bits": bits, "group_size": group_size, "clip": clip}
    rtn, gptq = solve(get("rtn")(**same), problem), solve(get("gptq")(**same), problem)
    assert torch.equal(rtn.dense(), gptq.dense())
    assert torch.equal(rtn.codes, gptq.codes)


def test_hlq_on_white_inputs_is_hlq_without_compensation() -> None:
    problem = Layer(layer().weight, WHITE)
    nearest = solve(get("hlq")(compensate=False), problem)
    for recode in (False, True):
        assert torch.equal(solve(get("hlq")(recode=recode), problem).dense(), nearest.dense())


def test_hlq_without_rounds_is_the_uniform_grid() -> None:
    problem = layer()
    answer = solve(get("hlq")(bits=3, compensate=False, rounds=0), problem).dense().reshape(24, 2, 64)
    weight = problem.weight.reshape(24, 2, 64)
    low, high = weight.amin(-1, keepdim=True), weight.amax(-1, keepdim=True)
    assert ((answer - weight).abs() <= (high - low) / 7 * 0.51).all()


@pytest.mark.parametrize("seed", range(4))
def test_compensation_pays(seed: int) -> None:
    problem = layer(seed=seed)
    rtn, gptq = (problem.error(solve(get(m)(bits=3), problem)) for m in ("rtn", "gptq"))
    nearest, swept = (problem.error(solve(get("hlq")(compensate=c), problem)) for c in (False, True))
    assert gptq < 0.8 * rtn
    assert swept < nearest


def test_free_levels_beat_even_ones_at_two_bits() -> None:
    """As a fit of the weights, and in the sweep if each column may choose again as it may in GPTQ (same order)."""
    white, problem = Layer(layer().weight, WHITE), layer()
    assert white.error(solve(get("hlq")(compensate=False), white)) < white.error(solve(get("rtn")(bits=2, clip=True), white))
    recoded, gptq = solve(get("hlq")(recode=True), problem), solve(get("gptq")(bits=2, clip=True, order="given"), problem)
    assert problem.error(recoded) < problem.error(gptq)


def test_gptq_fits_its_grid_to_the_survivors_only() -> None:
    """A pruned outlier must not stretch the range, and zeros stay zeros although they were compensated."""
    problem = layer()
    spiky = problem.weight.clone()
    spiky[:, 5] = 50.0
    keep = torch.ones_like(spiky, dtype=torch.bool)
    keep[:, 5] = False
    here = Layer(spiky * keep, problem.x)
    answer = solve(get("gptq")(bits=4), here, Masked(spiky, keep))
    assert (answer.dense()[:, 5] == 0).all()
    assert answer.scale.max() < 1
    assert here.error(answer) < 0.02


def test_damping_raised_is_noted() -> None:
    problem = layer(tokens=4)
    method = get("gptq")(damping=0.0)
    shown = seen(method, problem)
    method.solve(Dense(problem.weight), shown, problem.site)
    assert shown.notes["damping"] > 0


def test_matrices_with_one_input_are_factorized_once() -> None:
    problem, calls = layer(), []

    class Counting(dict):
        def __setitem__(self, key: object, value: object) -> None:
            calls.append(key)
            super().__setitem__(key, value)

    shared, gram = Counting(), problem.x.T @ problem.x / len(problem.x)
    for weight in (problem.weight, problem.weight * 2, -problem.weight):
        get("gptq")(bits=4).solve(Dense(weight), Seen({Gram: gram}, shared=shared), problem.site)
    assert len(calls) == 1

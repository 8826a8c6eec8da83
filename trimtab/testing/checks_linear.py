"""What a linear method must keep: on hard matrices, at its limits, and after being saved."""

from dataclasses import replace
from itertools import pairwise
from math import inf
from typing import Any

import torch
from torch import Tensor

from trimtab.core import registry
from trimtab.core.errors import UsageError
from trimtab.core.kinds import LinearMethod, LinearWeight, Original
from trimtab.core.knobs import knobs
from trimtab.core.recipe import Recipe
from trimtab.formats import NM, Chain, Dense, Grouped, Masked
from trimtab.formats.plain import stored_bits
from trimtab.testing.problems import (
    DRIFTED,
    Layer,
    accepts,
    every_format,
    expect,
    fitted,
    given,
    layer,
    seen,
    settings,
    solve,
)
from trimtab.testing.roundtrip import same_after_saving

# A strength knob, the values to try, and what more of it does to the error.
STRENGTHS: dict[str, tuple[tuple[float, ...], int]] = {
    "bits": ((1, 2, 3, 4, 5, 6, 8), -1),
    "keep": ((0.2, 0.4, 0.6, 0.8, 0.95), -1),
    "rank": ((1, 2, 4, 8, 16), -1),
    "sparsity": ((0.1, 0.3, 0.5, 0.7, 0.9), +1),
}
SLACK = 1.02  # greedy methods may lose a little from one strength to the next
UNPRUNED = {"sparsity": 0.0, "pattern": "unstructured"}
ZERO_KEEPING = (Masked, NM, Grouped)


def declares_formats(method: type[LinearMethod]) -> None:
    made = method()
    expect(bool(made.takes) and bool(made.gives), "`takes` and `gives` must name formats")
    expect(made.carry in ("compressed", "original"), f"carry is 'compressed' or 'original', not {made.carry!r}")


def leaves_its_input_alone(method: type[LinearMethod]) -> None:
    for made in settings(method):
        problem = layer()
        weight, shown = given(made, problem), seen(made, problem)
        watched = {**weight.tensors(), **{n.__name__: shown[n] for n in made.needs}}
        before = {name: tensor.clone() for name, tensor in watched.items()}
        made.solve(weight, shown, problem.site)
        for name, tensor in watched.items():
            expect(torch.equal(tensor, before[name]), f"{made} changes {name}, which it was only shown")


def answers_the_same_twice(method: type[LinearMethod]) -> None:
    for made in settings(method):
        once, again = solve(made, layer()), solve(made, layer())
        expect(once.spec() == again.spec(), f"{made} gives another container the second time")
        expect(torch.equal(once.dense(), again.dense()), f"{made} gives other numbers the second time")


def gives_what_it_says(method: type[LinearMethod]) -> None:
    """A finite matrix of the right shape, in one of the formats of `gives`, of the promised size to the byte."""
    for made in settings(method):
        for dtype in (torch.float32, torch.bfloat16):
            problem = layer()
            weight = given(made, problem, dtype)
            _check_answer(made, problem, weight, solve(made, problem, weight))


def serves_hard_matrices(method: type[LinearMethod]) -> None:
    """Odd shapes, silent rows and inputs, fewer tokens than channels. A shape may be refused by `fits`, naming the place."""
    for made in settings(method):
        for name, problem in _hard().items():
            adapted = fitted(made, problem.site)
            if adapted is None:
                continue
            for dtype in (torch.float32, torch.bfloat16):
                weight = given(adapted, problem, dtype)
                try:
                    _check_answer(adapted, problem, weight, solve(adapted, problem, weight))
                except (ArithmeticError, RuntimeError, IndexError, ValueError) as error:
                    raise AssertionError(f"{adapted} fails on {name}, {dtype}: {error}") from error


def follows_every_format_it_takes(method: type[LinearMethod]) -> None:
    for shape in ((24, 128), (17, 33)):
        problem = layer(*shape)
        made = fitted(method(), problem.site)
        if made is None:
            continue
        taken = [w for w in every_format(problem) if accepts(made, w)]
        expect(bool(taken), "it takes no format that exists")
        for weight in taken:
            here = Layer(weight.dense(), problem.x)
            _check_answer(made, here, weight, solve(made, here, weight))


def keeps_zeros(method: type[LinearMethod]) -> None:
    """What an earlier step pruned stays exactly zero, if the answer is in a format that says so."""
    for made in settings(method):
        problem = layer()
        alive = layer(seed=1).weight.abs() > 1.0  # fewer than most settings keep
        weight = Masked(problem.weight, alive)
        if not accepts(made, weight) or not issubclass(made.gives[0], ZERO_KEEPING):
            continue
        answer = solve(made, Layer(weight.dense(), problem.x), weight)
        revived = int((answer.dense()[~alive] != 0).sum())
        expect(not revived, f"{made} revives {revived} of {int((~alive).sum())} weights that were pruned before")


def gains_by_its_budget(method: type[LinearMethod]) -> None:
    """More bits, rank or kept parameters do not make the output error larger; more sparsity does not make it smaller."""
    for name, (values, direction) in STRENGTHS.items():
        problem = layer()
        made = _at_strengths(method, name, values)
        errors = [problem.error(solve(m, problem)) for m in made]
        worse = errors if direction > 0 else errors[::-1]
        for weaker, stronger in pairwise(worse):
            text = ", ".join(f"{m} {e:.3g}" for m, e in zip(made, errors, strict=True))
            expect(weaker <= stronger * SLACK, f"the output error does not follow {name}: {text}")


def is_exact_at_its_limit(method: type[LinearMethod]) -> None:
    """No sparsity, full rank, a matrix of the rank that is kept, the most bits: then (almost) nothing may be lost."""
    declared = knobs(method)
    if "sparsity" in declared and "bits" not in declared:
        problem = layer()
        expect(torch.equal(solve(method(sparsity=0.0), problem).dense(), problem.weight), "sparsity=0 changes the matrix")
    if "rank" in declared and Original in method().needs:
        problem = layer()
        _check_error(replace(method(), rank=min(problem.site.shape)), problem, 1e-5)
    if "keep" in declared and Chain in method.gives:
        left, right = layer(24, 2).weight, layer(2, 128).weight
        # Whoever looks at pairs aims at the untouched model's outputs, of which the inputs that are shown fall short.
        short = (DRIFTED - 1) ** 2 if any(getattr(need, "on", "") == "pair" for need in method.needs) else 0
        _check_error(method(keep=0.6), Layer(left @ right, layer().x), 1e-8 + short)
    if "bits" in declared:
        made = _at_strengths(method, "bits", STRENGTHS["bits"][0])[-1]
        made = replace(made, **{name: value for name, value in UNPRUNED.items() if name in declared})
        _check_error(made, layer(), 8 * 4.0 ** -made.knobs()["bits"])


def is_the_same_after_saving(method: type[LinearMethod]) -> None:
    made = method()
    mends = Original in made.needs and LinearWeight in made.takes
    before = (registry.get("rtn")(bits=2, group_size=0),) if mends else ()
    if Masked in made.takes and Dense not in made.takes:
        before = (registry.get("magnitude")(sparsity=0.5),)
    prepares = made.gives == (Dense,) and any(getattr(need, "on", "") == "pair" for need in made.needs)
    after = (registry.get("rtn")(bits=3, group_size=0),) if prepares else ()  # what it prepares for; alone it sees no drift
    same_after_saving("llama", Recipe((*before, made, *after)))


def _check_answer(made: LinearMethod, problem: Layer, weight: LinearWeight, answer: LinearWeight) -> None:
    expect(isinstance(answer, made.gives), f"{made} gives {type(answer).__name__}, which `gives` does not name")
    expect(answer.shape == problem.site.shape, f"{made} gives {answer.shape} for {problem.site.shape}")
    dense = answer.dense()
    expect(dense.dtype == torch.float32 and bool(dense.isfinite().all()), f"{made} gives numbers that are not finite")
    promised = made.promises(problem.site, weight.spec())
    if promised is None:
        return
    expect(promised == answer.spec(), f"{made} promises {promised} and gives {answer.spec()}")
    size = stored_bits(promised)
    expect(size == answer.bits, f"{made} promises {size} bits per weight and gives {answer.bits}")


def _hard() -> dict[str, Layer]:
    usual, odd, few = layer(), layer(17, 33), layer(tokens=8)
    return {
        "17 x 33": odd,
        "one row": layer(1, 64),
        "zero rows": Layer(_zeroed(usual.weight, 0), usual.x),
        "a zero matrix": Layer(torch.zeros_like(usual.weight), usual.x),
        "silent inputs": Layer(usual.weight, _zeroed(usual.x, 1)),
        "fewer tokens than channels": few,
        "one token": Layer(usual.weight, usual.x[:1]),
        "large and small": Layer(usual.weight * 1e3, usual.x * 1e-3),
        "17 x 33, silent inputs, few tokens": Layer(_zeroed(odd.weight, 0), _zeroed(odd.x, 1)[:5]),
    }


def _zeroed(matrix: Tensor, axis: int) -> Tensor:
    """Every third row (axis 0) or column (axis 1) is zero."""
    silent = torch.arange(matrix.shape[axis]) % 3 == 0
    return matrix.masked_fill(silent[:, None] if axis == 0 else silent, 0.0)


def _at_strengths(method: type[LinearMethod], name: str, values: tuple[float, ...]) -> list[Any]:
    knob = knobs(method).get(name)
    if knob is None:
        return []
    low, high = -inf if knob.low is None else knob.low, inf if knob.high is None else knob.high
    made = []
    for value in values:
        if low <= value <= high:
            try:
                made.append(method(**{name: value}))
            except UsageError:
                continue  # excluded by another knob
    return made


def _check_error(made: LinearMethod, problem: Layer, most: float) -> None:
    error = problem.error(solve(made, problem, _limit_input(made, problem)))
    expect(error <= most, f"{made} should be (nearly) exact here; its output error is {error:.3g}, more than {most:.3g}")


def _limit_input(made: LinearMethod, problem: Layer) -> LinearWeight:
    return given(made, problem) if Original in made.needs else Dense(problem.weight)


CHECKS = (
    declares_formats,
    leaves_its_input_alone,
    answers_the_same_twice,
    gives_what_it_says,
    serves_hard_matrices,
    follows_every_format_it_takes,
    keeps_zeros,
    gains_by_its_budget,
    is_exact_at_its_limit,
    is_the_same_after_saving,
)

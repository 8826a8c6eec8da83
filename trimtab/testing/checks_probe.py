"""What a probe must keep: it looks and changes nothing, says the same twice, and has a finite number for every block."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from trimtab.core.expression import steps
from trimtab.core.kinds import Finding, ProbeMethod
from trimtab.core.knobs import knobs
from trimtab.engine.probe import probe
from trimtab.testing.problems import expect, settings
from trimtab.testing.tiny import tiny, tokens

OTHERS = ("mixtral", "gpt2", "lfm2")  # experts, fused transposed projections, blocks of two kinds
WINDOWS, LENGTH = 4, 24


def measures_every_block(method: type[ProbeMethod]) -> None:
    """The first finding all of them, the others each at most once; every number finite, with an error and a count."""
    for made in settings(method):
        findings = _found(made, "llama")
        expect(bool(findings), f"{made} finds nothing")
        expect(_blocks(findings[0]) == [0, 1, 2, 3], f"the first finding of {made} is about blocks {_blocks(findings[0])} of 4")
        for finding in findings:
            _sound(finding, made)


def says_what_it_implies(method: type[ProbeMethod]) -> None:
    for made in settings(method):
        lines = [finding.implies for finding in _found(made, "llama") if finding.implies]
        expect(bool(lines), f"no finding of {made} says what it implies")
        expect(all(len(line.splitlines()) == 1 for line in lines), f"{made} says what it implies in more than one line")


def copes_with_other_families(method: type[ProbeMethod]) -> None:
    """A block that has no such quantity may be left out, if some finding says something; what is there must be sound."""
    for family in OTHERS:
        findings = _found(method(), family)
        expect(any(finding.implies for finding in findings), f"it says nothing about {family}")
        for finding in findings:
            _sound(finding, method())


def changes_nothing(method: type[ProbeMethod]) -> None:
    """Not a bit of the model, not its mode, not the global randomness; in half precision neither."""
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny("llama").to(dtype).train()
        before = {name: (value, value.clone()) for name, value in model.state_dict(keep_vars=True).items()}
        state = torch.random.get_rng_state()
        probe(model, tokens(model, WINDOWS, LENGTH), [method()])
        after = model.state_dict(keep_vars=True)
        expect(after.keys() == before.keys(), f"it adds or removes tensors: {sorted(after.keys() ^ before.keys())}")
        for name, (value, copy) in before.items():
            expect(after[name] is value and torch.equal(value, copy), f"it changes {name} of a model in {dtype}")
        expect(model.training, "it leaves the model in eval mode")
        expect(torch.equal(state, torch.random.get_rng_state()), "it draws from the global generator")
        left = [name for name, m in model.named_modules() if m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m)]
        expect(not left, f"it leaves hooks on {left}")


def depends_on_nothing_but_the_seed(method: type[ProbeMethod]) -> None:
    for made in settings(method):
        once, again = _found(made, "llama"), _found(made, "llama")
        expect(once == again, f"{made} finds something else the second time")


def survives_an_expression(method: type[ProbeMethod]) -> None:
    """Written as it is shown, `id(knob=value)`, a probe comes back the same: that is how the command line takes it."""
    for made in [*settings(method), *_moved(method)]:
        expect(steps(str(made)) == [(made, None)], f"{made} is not read back as it is written")


def _found(made: ProbeMethod, family: str) -> list[Finding]:
    model = tiny(family)
    return probe(model, _windows(model), [made])[0]


def _windows(model: torch.nn.Module) -> Tensor:
    return tokens(model, WINDOWS, LENGTH)  # type: ignore[arg-type]


def _blocks(finding: Finding) -> list[int]:
    return [measured.setting["block"] for measured in finding.measurements]


def _sound(finding: Finding, made: ProbeMethod) -> None:
    blocks = _blocks(finding)
    expect(blocks == sorted(set(blocks)), f"{made} measures a block twice, or out of order: {blocks}")
    names = {measured.name for measured in finding.measurements}
    expect(len(names) <= 1, f"one finding of {made} has several names: {sorted(names)}")
    for m in finding.measurements:
        expect(bool(m.name.strip()), f"a measurement of {made} has no name")
        expect(math.isfinite(m.value), f"{m.name} of block {m.setting['block']} is {m.value}")
        expect(math.isfinite(m.stderr) and m.stderr >= 0, f"the standard error of {m.name} is {m.stderr}")
        expect(m.n >= 1, f"{m.name} rests on {m.n} observations")


def _moved(method: type[ProbeMethod]) -> Sequence[ProbeMethod]:
    """With every number at the lower end of its range."""
    lowest = {name: knob.type(knob.low) for name, knob in knobs(method).items() if knob.low is not None}
    return [replace(method(), **{name: value}) for name, value in lowest.items()]


CHECKS = (
    measures_every_block,
    says_what_it_implies,
    copes_with_other_families,
    changes_nothing,
    depends_on_nothing_but_the_seed,
    survives_an_expression,
)

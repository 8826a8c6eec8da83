"""docs/formats.md describes every container as it is: what is stored, what the spec holds, and what it costs to the bit."""

import re
from math import ceil
from types import SimpleNamespace
from typing import Any

import pytest
from markdown_blocks import ROOT

from trimtab.core.kinds import LinearWeight
from trimtab.core.seeds import Seeds
from trimtab.formats import FORMATS
from trimtab.formats.checks import DTYPES
from trimtab.tensors.pyramid import points
from trimtab.testing.weights import examples, rotation, uncompiled

TEXT = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
SECTION = re.compile(r"^## \w+ \(`(\w+)`\)\n(.*?)(?=^## )", re.MULTILINE | re.DOTALL)
SECTIONS = dict(SECTION.findall(TEXT))
SHAPES = ((17, 33), (24, 128), (5, 7), (1, 96))
WEIGHTS = [w for shape in SHAPES for w in examples(*shape, Seeds(0).at("documented", shape))]
WEIGHTS += [rotation(width, Seeds(0).at("documented", width)) for width in (12, 17)]
WEIGHTS += uncompiled(17, 33, Seeds(0).at("documented"))


def test_every_format_has_a_section():
    assert SECTIONS.keys() == FORMATS.keys()


@pytest.mark.parametrize("kind", sorted(FORMATS))
def test_the_cost_is_as_documented(kind: str):
    formula = re.search(r"^```bits\n(.*?)\n```", SECTIONS[kind], re.MULTILINE | re.DOTALL)
    assert formula, f"{kind} has no formula"
    of_kind = [w for w in WEIGHTS if w.kind == kind]
    assert of_kind
    for weight in of_kind:
        assert eval(formula[1], _names(weight)) == pytest.approx(weight.bits, rel=1e-12), weight


@pytest.mark.parametrize("kind", sorted(FORMATS))
def test_the_spec_is_as_documented(kind: str):
    line = re.search(r"^Spec: (.*)", SECTIONS[kind], re.MULTILINE)
    assert line, f"{kind} has no spec"
    for weight in (w for w in WEIGHTS if w.kind == kind):
        assert set(re.findall(r"`(\w+)`", line[1])) == weight.spec().keys()


@pytest.mark.parametrize("kind", sorted(FORMATS))
def test_the_tensors_are_as_documented(kind: str):
    rows = dict(re.findall(r"^\| `(\w+)` \| ([\w ]+) \|", SECTIONS[kind], re.MULTILINE))
    seen: set[str] = set()
    for weight in (w for w in WEIGHTS if w.kind == kind):
        own = {name: t for name, t in weight.tensors().items() if not name[0].isdigit()}
        assert own.keys() <= rows.keys()
        for name, tensor in own.items():
            assert rows[name] in ("as given", str(tensor.dtype).removeprefix("torch."))
        seen |= own.keys()
    assert seen == rows.keys(), "a documented tensor is never stored"


def _names(weight: LinearWeight) -> dict[str, Any]:
    """What the formulas of the page may speak of."""
    spec, (out, inputs) = weight.spec(), weight.shape
    group_size = spec.get("group_size")
    padded = max(8, 1 << (inputs - 1).bit_length())
    return {
        **spec,
        "spec": spec,
        "padded": padded,
        "stacks": ceil(out / padded),
        "out": out,
        "inputs": inputs,
        "width": 8 * DTYPES[spec["dtype"]].itemsize if "dtype" in spec else None,
        "groups": inputs // group_size if group_size else None,
        "parts": [_part(part) for part in _parts(weight)],
        "whole": lambda bits: 8 * ceil(bits / 8),
        "points": points,
        "log2": lambda count: (count - 1).bit_length(),
    }


def _parts(weight: Any) -> tuple[LinearWeight, ...]:
    inner = (weight.inner,) if hasattr(weight, "inner") else ()
    return getattr(weight, "factors", None) or getattr(weight, "parts", None) or inner


def _part(weight: LinearWeight) -> SimpleNamespace:
    return SimpleNamespace(bits=weight.bits, out=weight.shape[0], inputs=weight.shape[1])

"""Files may lie. Every lie about a weight is one `ModelError`, before anything is allocated, and never another exception."""

import copy
from importlib import metadata

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.core.errors import ModelError, TrimtabError
from trimtab.formats import FORMATS, NM, Dense, build, layout, registry
from trimtab.testing.weights import examples, rotation, uncompiled

ALL = [*examples(4, 24, torch.Generator().manual_seed(0)), rotation(24, torch.Generator().manual_seed(0))]
ALL += uncompiled(4, 24, torch.Generator().manual_seed(0))
over_all = pytest.mark.parametrize("weight", ALL, ids=[f"{i}-{w.kind}" for i, w in enumerate(ALL)])

DEEP: dict = {"kind": "dense", "shape": [1, 1], "dtype": "float32"}
for _ in range(100_000):
    DEEP = {"kind": "sum", "shape": [1, 1], "parts": [DEEP]}
NESTED_LIST: list = []
for _ in range(100_000):
    NESTED_LIST = [NESTED_LIST]

WRONG = [
    None,
    True,
    -1,
    0,
    1.5,
    float("nan"),
    2**31 + 1,
    10**5000,
    "x" * 1_000_000,
    "float32; rm",
    [],
    [1],
    [0, 1],
    [-1, 4],
    [True, 4],
    [2**40, 2**40],
    ["4", "24"],
    [4, 24, 1],
    [8, 24],
    [4, 48],
    {},
    {"kind": []},
    [None],
    [{}],
    NESTED_LIST,
    [DEEP],
]


def places(spec: dict, path: tuple = ()) -> list[tuple]:
    """Every field of a spec and of the specs inside it, as paths."""
    found = []
    for key, value in spec.items():
        found.append((*path, key))
        if key == "parts":
            for i, part in enumerate(value):
                found += places(part, (*path, key, i))
    return found


def at(spec: dict, path: tuple) -> dict:
    for key in path[:-1]:
        spec = spec[key]
    return spec


@over_all
def test_wrong_values_everywhere(weight):
    for path in places(weight.spec()):
        for wrong in WRONG:
            spec = weight.spec()
            owner = at(spec, path)
            right = owner[path[-1]]
            if type(wrong) is type(right) and wrong == right:
                continue
            if (path[-1], wrong) in (("loud", 0), ("floating", True)):
                continue  # none of the groups, or e4m3 numbers, which may well be
            owner[path[-1]] = wrong
            with pytest.raises(ModelError) as caught:
                build(spec, weight.tensors())
            assert len(str(caught.value)) < 600
            assert "\n" not in str(caught.value)


@over_all
def test_missing_and_surplus_fields(weight):
    for path in places(weight.spec()):
        spec = weight.spec()
        del at(spec, path)[path[-1]]
        with pytest.raises(ModelError):
            layout(spec)
        spec = weight.spec()
        at(spec, path)["grop_size"] = 1
        with pytest.raises(ModelError, match="unknown field 'grop_size'"):
            layout(spec)
        at(spec, path)[7] = at(spec, path).pop("grop_size")
        with pytest.raises(ModelError, match="unknown field 7"):
            layout(spec)


@over_all
def test_wrong_tensors(weight):
    for name, tensor in weight.tensors().items():
        stored = weight.tensors()
        del stored[name]
        with pytest.raises(ModelError, match=name):
            build(weight.spec(), stored)
        for damaged in (tensor[:-1], tensor[..., None], tensor.double() if tensor.dtype != torch.float64 else tensor.int()):
            with pytest.raises(ModelError, match=name.rpartition("_")[2]):
                build(weight.spec(), {**weight.tensors(), name: damaged})
    with pytest.raises(ModelError, match="'extra' too many"):
        build(weight.spec(), {**weight.tensors(), "extra": torch.zeros(1)})


@over_all
def test_neither_spec_nor_tensors_are_changed(weight):
    spec, stored = weight.spec(), {k: t.clone() for k, t in weight.tensors().items()}
    before = copy.deepcopy(spec)
    build(spec, stored)
    layout(spec)
    assert spec == before
    assert all(torch.equal(stored[k], t) for k, t in weight.tensors().items())


def damaged(kind: str, name: str, value: object) -> tuple[dict, dict]:
    weight = next(w for w in ALL if w.kind == kind and name in w.tensors())
    return weight.spec(), {**weight.tensors(), name: torch.full_like(weight.tensors()[name], value)}


@pytest.mark.parametrize(
    ("kind", "name", "value", "message"),
    [
        ("masked", "bitmap", 255, "'bitmap' marks 96 weights"),
        ("nm", "positions", 255, "'positions' must ascend"),
        ("nm", "positions", 0, "'positions' must ascend"),
        ("grouped", "scale", float("nan"), "grouped: scale is not finite"),
        ("bitplanes", "offset", float("inf"), "bitplanes: offset is not finite"),
        ("bitplanes", "scale", float("nan"), "bitplanes: scale is not finite"),
        ("signplanes", "scale", float("nan"), "signplanes: scale is not finite"),
        ("signplanes", "shifts", -65, "signplanes: shifts must be from -64 to 63"),
        ("signstack", "left", float("inf"), "signstack: left is not finite"),
        ("signstack", "right", float("nan"), "signstack: right is not finite"),
        ("signstack", "worth", float("nan"), "signstack: worth is not finite"),
        ("codebook", "codebook", float("-inf"), "codebook: codebook is not finite"),
        ("pyramid", "radii", float("nan"), "pyramid: radii is not finite"),
        ("pyramid", "scale", float("inf"), "pyramid: scale is not finite"),
        ("lattice", "scale", float("nan"), "lattice: scale is not finite"),
        ("pyramid", "points", 255, "'points' goes beyond the points that there are"),
    ],
)
def test_contents_that_cannot_be(kind, name, value, message):
    with pytest.raises(ModelError, match=message):
        build(*damaged(kind, name, value))


def test_codes_beyond_the_codebook():
    weight = next(w for w in ALL if w.kind == "codebook" and w.spec()["entries"] == 13)
    codes = torch.full_like(weight.tensors()["codes"], 255)
    with pytest.raises(ModelError, match="goes up to 15; the codebook has 13 entries"):
        build(weight.spec(), {**weight.tensors(), "codes": codes})


def test_positions_beyond_the_group():
    weight = NM.of(torch.ones(2, 6), torch.tensor([[True, False, False] * 2] * 2), 1, 3)
    with pytest.raises(ModelError, match="at most 2 in every group"):
        build(weight.spec(), {**weight.tensors(), "positions": torch.full((2, 1), 255, dtype=torch.uint8)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"group_size": 7}, "group_size 7 does not divide 24"),
        ({"bits": 9}, "bits must be a whole number from 2 to 8, got 9"),
        ({"kind": "groped"}, "no format 'groped'; did you mean 'grouped'"),
        ({"parts": [{}] * 65}, "65 parts"),
        ({"shape": [2**31, 24]}, "its spec says"),
    ],
)
def test_messages_say_what(change, message):
    weight = next(w for w in ALL if w.kind == "grouped")
    with pytest.raises(ModelError, match=message):
        build({**weight.spec(), **change}, weight.tensors())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"kind": "rotation", "shape": [4, 8], "block": 4}, r"a rotation is square, its shape is \[4, 8\]"),
        ({"kind": "rotation", "shape": [24, 24], "block": 5}, "block 5 does not divide 24"),
        ({"kind": "rotation", "shape": [33, 33], "block": 11}, "no Hadamard matrix of order 11"),
        ({"kind": "rotation", "shape": [24, 24], "block": True}, "block must be a whole number"),
        ({"kind": "lattice", "shape": [4, 12], "bits": 2}, "a point's dimension 8 does not divide 12"),
        ({"kind": "lattice", "shape": [4, 24], "bits": 3}, "bits must be a whole number from 1 to 2, got 3"),
        ({"kind": "lattice", "shape": [4, 24], "bits": 1.0}, "bits must be a whole number"),
    ],
)
def test_rotations_and_lattices_that_cannot_be(spec, message):
    with pytest.raises(ModelError, match=message):
        layout(spec)


def test_nothing_is_allocated_for_a_huge_claim():
    made = layout({"kind": "dense", "shape": [2**31, 2**31], "dtype": "float64"})
    assert made == {"weight": ((2**31, 2**31), torch.float64)}


@pytest.mark.parametrize("spec", [None, 3, "dense", [], ["kind"], {}, {"kind": None}, {"kind": ["dense"]}, DEEP])
def test_specs_that_are_none(spec):
    with pytest.raises(ModelError):
        layout(spec)
    with pytest.raises(ModelError):
        build(spec, {})


@pytest.mark.parametrize("kind", FORMATS)
def test_formats_check_for_themselves(kind):
    for spec in (None, [], {}, {"kind": kind}, {"kind": kind, "shape": [1, 2]}, {"kind": "other", "shape": [1, 1]}):
        with pytest.raises(ModelError, match=kind):
            FORMATS[kind].layout(spec)


leaf = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from([*FORMATS, "float16"])
junk = st.recursive(leaf, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3))


@settings(max_examples=200, deadline=None)
@given(weight=st.sampled_from(ALL), data=st.data())
def test_random_damage_is_refused_or_understood(weight, data):
    spec = weight.spec()
    path = data.draw(st.sampled_from(places(spec)))
    at(spec, path)[path[-1]] = data.draw(junk)
    try:
        made = layout(spec)
    except ModelError:
        return
    assert all(isinstance(n, int) and n >= 0 for shape, _ in made.values() for n in shape)


class Foreign(Dense):
    kind = "foreign"


def offer(monkeypatch, *points: metadata.EntryPoint) -> None:
    def found(group, name=None):
        return metadata.EntryPoints(p for p in points if p.group == group and name in (None, p.name))

    monkeypatch.setattr(registry, "entry_points", found)


@pytest.fixture(autouse=True)
def forget_foreign_formats():
    registry._foreign.cache_clear()
    yield
    registry._foreign.cache_clear()


def test_a_format_from_elsewhere(monkeypatch):
    offer(monkeypatch, metadata.EntryPoint("foreign", f"{__name__}:Foreign", "trimtab.formats"))
    weight = Foreign(torch.ones(2, 3))
    made = build(weight.spec(), weight.tensors())
    assert type(made).__name__ == "Foreign"
    assert torch.equal(made.dense(), torch.ones(2, 3))
    with pytest.raises(ModelError, match="did you mean 'foreign'"):
        layout({**weight.spec(), "kind": "foreigner"})


def test_a_format_registered_wrongly_fails_loudly(monkeypatch):
    offer(monkeypatch, metadata.EntryPoint("mine", f"{__name__}:Foreign", "trimtab.formats"))
    with pytest.raises(TrimtabError, match="its kind is 'foreign', registered as 'mine'"):
        layout({"kind": "mine", "shape": [1, 1]})
    twice = [metadata.EntryPoint("twin", f"a{i}:B", "trimtab.formats") for i in range(2)]
    offer(monkeypatch, *twice)
    with pytest.raises(TrimtabError, match="two packages offer the format 'twin': a0:B, a1:B"):
        layout({"kind": "twin", "shape": [1, 1]})
    offer(monkeypatch, metadata.EntryPoint("gone", "no_such_package:B", "trimtab.formats"))
    with pytest.raises(ModuleNotFoundError):
        layout({"kind": "gone", "shape": [1, 1]})

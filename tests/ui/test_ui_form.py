"""What is filled in becomes words of a command, and nothing else."""

import pytest
from stub_cli import METHODS

from trimtab.core.errors import UsageError
from trimtab.ui.places import Places

pydantic = pytest.importorskip("pydantic")
form = pytest.importorskip("trimtab.ui.form")

KNOWN = {method["id"]: method for method in METHODS}


def said(root, **fields) -> list[str]:
    asked = form.Asked(**{"model": "asset:own-2m", "name": "new", "way": "bits", "value": "3.5", **fields})
    return form.words(asked, Places(root.resolve()), KNOWN)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, ["--bits=3.5"]),
        ({"way": "size", "value": "40%"}, ["--size=40%"]),
        ({"way": "speedup", "value": "2x"}, ["--speedup=2x"]),
        ({"way": "fit", "value": "2GiB"}, ["--fit=2GiB"]),
        ({"way": "max-ppl-increase", "value": "3%"}, ["--max-ppl-increase=3%"]),
        ({"way": "do", "value": "rtn(bits=3)"}, ["--do=rtn(bits=3)"]),
        ({"way": "method", "value": "gptq"}, ["--method=gptq"]),
        ({"way": "method", "value": "gptq", "knobs": {"bits": 3, "clip": True}}, ["--method=gptq", "--bits=3", "--clip"]),
        ({"way": "method", "value": "gptq", "knobs": {"clip": False}}, ["--method=gptq", "--no-clip"]),
        ({"knobs": {"clip": True}}, ["--bits=3.5"]),
        ({"tokens": 4096, "length": 128, "seed": 0}, ["--bits=3.5", "--tokens=4096", "--length=128", "--seed=0"]),
        ({"dtype": "float16", "packed": True}, ["--bits=3.5", "--dtype=float16", "--packed"]),
        ({"only": ["mlp", "-o"], "skip": ["layers.0"]}, ["--bits=3.5", "--only=mlp", "--only=-o", "--skip=layers.0"]),
        ({"text": "asset:boolq"}, ["--bits=3.5", "--text=asset:boolq"]),
    ],
)
def test_words(root, fields, words):
    assert said(root, **fields) == ["asset:own-2m", *words]


def test_places_are_spelled_out(root):
    words = said(root, model="four-bit", way="recipe", value="three.yaml", text="text.txt")
    assert words == [str(root / "four-bit"), f"--recipe={root / 'three.yaml'}", f"--text={root / 'text.txt'}"]


@pytest.mark.parametrize(
    ("fields", "fragment"),
    [
        ({"way": "method", "value": "gptqq"}, "there is no method 'gptqq'; did you mean 'gptq'?"),
        ({"way": "method", "value": "gptq", "knobs": {"bit": 3}}, "gptq has no knob 'bit'; did you mean 'bits'?"),
        ({"way": "method", "value": "gptq", "knobs": {"output_dir": "/tmp/x"}}, "gptq has no knob 'output_dir'"),
        ({"way": "method", "value": "gptq", "knobs": {"overwrite": True}}, "gptq has no knob 'overwrite'"),
        ({"way": "method", "value": "gptq", "knobs": {"bits": "../x"}}, "lies outside of"),
        ({"way": "do", "value": "x(model='../y')"}, "lies outside of"),
        ({"way": "recipe", "value": "../three.yaml"}, "lies outside of"),
        ({"text": "/etc/passwd"}, "lies outside of"),
        ({"model": "/etc"}, "lies outside of"),
        ({"value": ""}, "give bits per weight"),
        ({"way": "fit", "value": ""}, "give an amount of memory"),
    ],
)
def test_refused(root, fields, fragment):
    with pytest.raises(UsageError) as raised:
        said(root, **fields)
    assert fragment in str(raised.value)


@pytest.mark.parametrize("fields", [{"way": "shell"}, {"out": "x"}, {"tokens": 0}, {"value": "x" * 2001}, {"only": ["x"] * 51}])
def test_what_the_form_does_not_have(root, fields):
    with pytest.raises(pydantic.ValidationError):
        said(root, **fields)


@pytest.mark.parametrize("value", ["--output-dir=/tmp/x", "-o", "3 -o /tmp/x"])
def test_a_value_never_becomes_an_option(root, value):
    assert said(root, value=value)[1:] == [f"--bits={value}"]
    assert said(root, dtype=value)[1:] == ["--bits=3.5", f"--dtype={value}"]

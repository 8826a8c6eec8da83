"""A method from another package is found through its entry point and is treated like ours."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from trimtab.core import registry
from trimtab.testing.check_method import check_method

METHOD = '''"""Halve: every weight is worth half of what it was."""

from dataclasses import dataclass
from typing import ClassVar

from trimtab.core.card import Card
from trimtab.core.kinds import LinearMethod
from trimtab.core.knobs import count
from trimtab.formats import Dense


@dataclass(frozen=True)
class Halve(LinearMethod):
    card: ClassVar = Card(id="halve", title="Half of everything", paper="none", fidelity="exact")
    takes: ClassVar = (Dense,)
    gives: ClassVar = (Dense,)

    times: int = count("how often", 1, 1, 4)

    def solve(self, weight, seen, site):
        return Dense(weight.weight * 0.5 ** self.times)
'''

FALSE_PROMISE = """
    def promises(self, site, spec):
        return {**spec, "dtype": "float16"}
"""


def install(place: Path, module: str, text: str) -> Path:
    """A package as an installer leaves it: the module, and the directory that says what it offers."""
    (place / f"{module}.py").write_text(text)
    info = place / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[trimtab.methods]\nhalve = {module}:Halve\n")
    return place


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    return install(tmp_path, "halving", METHOD)


def python(installed: Path, code: str) -> str:
    """What the code prints, in a fresh interpreter that finds the package."""
    code = f"import sys; sys.path.insert(0, {str(installed)!r})\n{code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_is_listed_parsed_checked_and_run(installed: Path) -> None:
    printed = python(
        installed,
        """
import json
from trimtab.core import registry
from trimtab.core.recipe import Recipe
listed, untouched = "halve" in registry.ids(), "halving" not in sys.modules
recipe = Recipe.of("halve(times=2) -> rtn(bits=8)")
from trimtab.testing.check_method import check_method
check_method(registry.get("halve"))
from trimtab.testing.roundtrip import ran
model, bench = ran("llama", recipe)
print(json.dumps([listed, untouched, str(recipe), registry.room("halve"), len(bench.receipts)]))
""",
    )
    assert json.loads(printed) == [True, True, "halve(times=2) -> rtn(bits=8)", "halving", 56]


def test_is_known_to_the_command_line(installed: Path) -> None:
    pytest.importorskip("trimtab.cli.main")
    printed = python(installed, "sys.argv = ['trimtab', 'methods', '--json']\nfrom trimtab.cli.main import run\nrun()")
    assert "halve" in json.dumps(json.loads(printed))


@pytest.mark.parametrize(
    ("old", "new", "check"),
    [
        ("@dataclass(frozen=True)", "@dataclass", "frozen"),
        ("weight.weight * 0.5", "weight.weight.mul_(0.5)", "leaves_its_input_alone"),
        ("0.5 ** self.times", "0.5", "uses_every_field"),
        ('count("how often", 1, 1, 4)', "1", "declare"),
        ("weight.weight * ", "weight.weight[:1] * ", "gives_what_it_says"),
        ("weight.weight * ", "__import__('torch').rand_like(weight.weight) * ", "answers_the_same_twice"),
        ('"""Halve: every', '"""Every', "has_a_module_docstring"),
        ('title="Half of everything"', 'title=" "', "has_a_complete_card"),
        ("(Dense,)\n\n", f"(Dense,)\n{FALSE_PROMISE}\n", "promise"),
    ],
)
def test_a_broken_promise_is_found_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, old: str, new: str, check: str
) -> None:
    assert old in METHOD
    module = f"halving_{abs(hash(request.node.name))}"
    monkeypatch.syspath_prepend(install(tmp_path, module, METHOD.replace(old, new, 1)))
    with pytest.raises((AssertionError, TypeError), match=check):
        check_method(registry.get("halve"))

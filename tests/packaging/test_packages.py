"""What is installed: the wheel has all of the package and nothing else, and the files around it fit the repository."""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import typer

from trimtab.cli.main import app

ROOT = Path(__file__).resolve().parent.parent.parent
BUILD = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FIRST_RUN = ROOT / "examples" / "first_run.sh"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built from a copy, so that nothing is left in the repository."""
    place = tmp_path_factory.mktemp("wheel")
    source = place / "source"
    shutil.copytree(ROOT / "trimtab", source / "trimtab", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    done = subprocess.run([sys.executable, "-c", BUILD, str(place)], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (file,) = place.glob("*.whl")
    assert file.name == f"trimtab-{PROJECT['version']}-py3-none-any.whl"
    return zipfile.ZipFile(file)


def test_the_wheel_has_every_file_of_the_package(wheel):
    there = {path.relative_to(ROOT).as_posix() for path in (ROOT / "trimtab").rglob("*") if path.is_file()}
    expected = {name for name in there if "__pycache__" not in name}
    assert {"trimtab/py.typed", "trimtab/methods/__init__.pyi", "trimtab/report/templates/report.html"} <= expected
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == expected


def test_the_wheel_says_what_it_needs(wheel):
    name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    said = Parser().parsestr(wheel.read(name).decode())
    needed = [line for line in said.get_all("Requires-Dist") if "extra ==" not in line]
    assert sorted(re.split(r"[ >=<]", line)[0] for line in needed) == sorted(d.split(">=")[0] for d in PROJECT["dependencies"])
    assert not [line for line in needed if "==" in line], "exact versions force other packages back"
    assert set(said.get_all("Provides-Extra")) == set(PROJECT["optional-dependencies"])
    assert said["Requires-Python"] == ">=3.11"
    scripts = wheel.read(name.replace("METADATA", "entry_points.txt")).decode()
    assert "trimtab = trimtab.cli.main:run" in scripts


def test_an_installed_wheel_runs(wheel, tmp_path):
    wheel.extractall(tmp_path / "site")
    script = "import trimtab, sys; from trimtab.cli.main import run; print(trimtab.__file__, file=sys.stderr); run()"
    variables = {"PYTHONPATH": str(tmp_path / "site"), "PATH": ""}
    command = [sys.executable, "-c", script, "methods", "gptq"]
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "site") in done.stderr
    assert "gptq" in done.stdout


@pytest.mark.slow
def test_the_kernels_are_built_as_a_wheel(tmp_path):
    """A minute of compiling, in folders of its own."""
    source = tmp_path / "native"
    shutil.copytree(ROOT / "native", source, ignore=shutil.ignore_patterns("build"))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(source)]
    assert subprocess.run(command).returncode == 0
    (file,) = tmp_path.glob("trimtab_native-*.whl")
    with zipfile.ZipFile(file) as held:
        assert [name for name in held.namelist() if name.startswith("trimtab_native.")]


def test_both_packages_have_the_same_version_and_python():
    native = tomllib.loads((ROOT / "native" / "pyproject.toml").read_text(encoding="utf-8"))
    for field in ("version", "requires-python", "license"):
        assert native["project"][field] == PROJECT[field]
    oldest = native["tool"]["cibuildwheel"]["build"].split()[0]
    assert oldest == "cp" + PROJECT["requires-python"].removeprefix(">=").replace(".", "") + "-*"


def test_the_image_is_made_of_files_that_there_are():
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    copied = [name for line in re.findall(r"^COPY (?!--)(.*) \S+$", text, re.MULTILINE) for name in line.split()]
    let_in = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied
    assert set(copied) == let_in
    assert all((ROOT / name).exists() for name in copied)


def test_the_first_run_is_a_script_whose_commands_there_are():
    subprocess.run(["bash", "-n", str(FIRST_RUN)], check=True)
    lines = re.findall(r"^timed .* \.venv/bin/trimtab (.*)$", FIRST_RUN.read_text(encoding="utf-8"), re.MULTILINE)
    assert [shlex.split(line)[0] for line in lines] == ["plan", "compress", "generate"]
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for line in lines:
        name, *words = shlex.split(line)
        commands[name].make_context(name, words)

"""Exit codes, one-line errors, what goes to which stream."""

import importlib
import json
import os
import subprocess
import sys
import warnings
from io import StringIO

import pytest
import typer
from transformers.utils import logging

from trimtab.cli import doctor, measure, progress, show
from trimtab.cli.main import app
from trimtab.cli.manners import MEASURED, Exit, Terminated, hushed, plain_dashes
from trimtab.cli.progress import LineWatcher, spell, wants_bars, working
from trimtab.cli.request import Request, spellings, understand
from trimtab.core.errors import TrimtabError
from trimtab.core.knobs import knobs
from trimtab.core.progress import Progress
from trimtab.core.registry import get, ids

HEAVY = ("torch", "transformers", "matplotlib", "yaml")


def test_help_imports_nothing_heavy():
    script = (
        "import sys\nfrom trimtab.cli.main import run\ntry: run()\nfinally:\n"
        f"    print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    for command in ([], ["compress"], ["claim"]):
        done = subprocess.run([sys.executable, "-c", script, *command, "--help"], capture_output=True, text=True, check=True)
        assert done.stderr == "[]\n"
        assert "Usage: trimtab" in done.stdout


def test_bare_command_shows_the_help(trimtab):
    done = trimtab()
    assert done.exit_code == 0
    assert "compress" in done.stdout


def raising(error: BaseException):
    def fail(*_) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (TrimtabError("two\n  lines"), 1, "trimtab: error: two lines\n"),
        (RuntimeError("boom"), 1, "trimtab: error: unexpected RuntimeError: boom; run again with -v to see where\n"),
        (KeyboardInterrupt(), 130, "trimtab: interrupted; nothing was left half-written\n"),
    ],
)
def test_every_end_is_one_line(trimtab, monkeypatch, error, code, line):
    monkeypatch.setattr(doctor, "_machine", raising(error))
    done = trimtab("doctor")
    assert (done.exit_code, done.stdout, done.stderr) == (code, "", line)


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 130), (Terminated, 75)])
@pytest.mark.parametrize("words", [("measure", "m"), ("compare", "m", "n"), ("export", "m", "--to", "plain", "-o", "nowhere")])
def test_who_stops_work_hears_that_the_same_command_goes_on(trimtab, monkeypatch, error, code, words):
    for place in ("trimtab.host.opening", "trimtab.host.export.job", "trimtab.measure.contender"):
        monkeypatch.setattr(importlib.import_module(place), "resolve_model", raising(error))
    done = trimtab(*words)
    left = "interrupted; nothing was left half-written" if words[0] == "export" else MEASURED
    assert (done.exit_code, done.stdout, done.stderr.splitlines()[-1]) == (code, "", f"trimtab: {left}")


@pytest.mark.parametrize("how", ["-v", "TRIMTAB_DEBUG"])
def test_tracebacks_on_request(trimtab, monkeypatch, how):
    monkeypatch.setattr(doctor, "_machine", raising(RuntimeError("boom")))
    if how == "TRIMTAB_DEBUG":
        monkeypatch.setenv(how, "1")
    done = trimtab("doctor", *([how] if how == "-v" else []))
    assert done.exit_code == 1
    assert "Traceback" in done.stderr
    assert done.stderr.endswith("trimtab: error: unexpected RuntimeError: boom\n")


def test_exit_codes_are_the_published_ones():
    assert {code.name: code.value for code in Exit} == {
        "OK": 0,
        "FAILURE": 1,
        "USAGE": 2,
        "RESUMABLE": 75,
        "INTERRUPTED": 130,
    }


def test_what_libraries_print_is_no_result(trimtab, monkeypatch, model):
    def chatty(name, place):
        print("a library says hello")
        raise TrimtabError("enough")

    monkeypatch.setattr(measure, "open_with_tokenizer", chatty)
    done = trimtab("measure", model, "--json")
    assert done.stdout == ""
    assert "a library says hello" in done.stderr


def test_underscores_are_dashes_in_names_only():
    given = ["--group_size", "3", "--output_dir=a_b", "some_model", "--", "--as_is"]
    assert plain_dashes(given) == ["--group-size", "3", "--output-dir=a_b", "some_model", "--", "--as_is"]


def test_no_knob_is_hidden_by_an_option_of_the_command():
    options = {name for p in typer.main.get_command(app).commands["compress"].params for name in [*p.opts, *p.secondary_opts]}
    assert "--tokens" in options
    levels = understand(Request(["m"], [], search="evopress", levels="gptq:bits=2,3")).recipes[0].steps[0].by.levels
    assert levels == "bits=2,3"
    options.remove("--levels")  # it sets this knob
    for id in ids():
        for name, knob in knobs(get(id)).items():
            assert options.isdisjoint(spellings(name, knob)), f"{id}: the command has an option --{name} of its own"


def test_numbers_that_json_does_not_have(capsys):
    show.as_json({"a": float("nan"), "b": [float("inf"), 1.5], "c": (2,)})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.5], "c": [2]}


def test_sizes_and_times_in_words():
    assert [show.size(n) for n in (12, 1234, 5.4e8, 3.2e12)] == ["12 bytes", "1.23 kB", "540 MB", "3.2 TB"]
    assert [spell(s) for s in (3.21, 42.0, 75.0, 7380.0)] == ["3.2 s", "42 s", "1 min 15 s", "2 h 3 min"]
    assert show.change(400, 100) == "400 bytes -> 100 bytes (4.00 times smaller)"
    assert show.change(None, 100) == "? -> 100 bytes"


def test_plain_progress_is_throttled_and_estimates(monkeypatch):
    monkeypatch.setattr(progress, "memory", lambda: 2_000_000)
    stream, now = StringIO(), [0.0]
    watch = LineWatcher(stream, clock=lambda: now[0])
    for seconds, done, detail in [(0, 0, "q"), (1, 0, "k"), (3, 0, "v"), (4, 1, "q"), (5, 2, "q"), (5.5, 3, "q"), (30, 3, "k")]:
        now[0] = seconds
        watch(Progress("sweep", done, 10, detail))
    now[0] = 33
    watch(Progress("observe", 0, 10))
    assert stream.getvalue().splitlines() == [
        "trimtab: sweep 0/10 q, 0.0 s, 2 MB",
        "trimtab: sweep 1/10 q, 4.0 s, about 36 s left, 2 MB",
        "trimtab: sweep 3/10 k, 30 s, about 1 min 10 s left, 2 MB",
        "trimtab: observe 0/10, 0.0 s, 2 MB",
    ]


def test_a_phase_that_begins_again_is_timed_again(monkeypatch):
    monkeypatch.setattr(progress, "memory", lambda: 0)
    stream, now = StringIO(), [0.0]
    watch = LineWatcher(stream, clock=lambda: now[0])
    for seconds, done in [(0, 0), (10, 2), (20, 0), (30, 1)]:
        now[0] = seconds
        watch(Progress("sweep", done, 2))
    assert stream.getvalue().splitlines()[2:] == [
        "trimtab: sweep 0/2, 0.0 s, 0 bytes",
        "trimtab: sweep 1/2, 10 s, about 10 s left, 0 bytes",
    ]


def test_when_there_are_bars(monkeypatch):
    class Terminal(StringIO):
        def isatty(self) -> bool:
            return True

    for name in ("TERM", "TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS"):
        monkeypatch.delenv(name, raising=False)
    assert wants_bars(Terminal())
    assert not wants_bars(StringIO())
    for name, value in (("TERM", "dumb"), ("TQDM_DISABLE", "1"), ("HF_HUB_DISABLE_PROGRESS_BARS", "true")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert not wants_bars(Terminal())
    monkeypatch.setenv("TQDM_DISABLE", "0")
    assert wants_bars(Terminal())


def test_quiet_is_quiet(capsys):
    with working(quiet=True) as watch:
        watch(Progress("sweep", 0, 1))
    assert capsys.readouterr() == ("", "")


def test_hushed_leaves_the_environment_as_it_was(monkeypatch, capsys):
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "info")
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS", raising=False)
    with hushed(verbose=False):
        assert os.environ["TRANSFORMERS_VERBOSITY"] == "info"
        assert os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] == "1"
        warnings.warn_explicit("ours", UserWarning, f"{os.sep}x{os.sep}trimtab{os.sep}host.py", 1)
        warnings.warn_explicit("theirs", UserWarning, "library.py", 1)
    assert "HF_HUB_DISABLE_PROGRESS_BARS" not in os.environ
    assert capsys.readouterr().err == "trimtab: warning: ours\n"
    with hushed(verbose=True):
        assert "HF_HUB_DISABLE_PROGRESS_BARS" not in os.environ


def test_hushed_tells_who_is_imported_already():
    logging.enable_progress_bar()  # the fixture `hushed` sets it back
    with hushed(verbose=False):
        assert not logging.is_progress_bar_enabled()
    assert logging.is_progress_bar_enabled()
    with hushed(verbose=True):
        assert logging.is_progress_bar_enabled()


def test_processor_is_read_from_cpuinfo(tmp_path):
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx2 avx512f amx_int8 sse\n\nflags\t\t: other\n")
    assert doctor.processor(file) == ("Some CPU", ["amx_int8", "avx2", "avx512f"])

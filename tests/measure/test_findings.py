"""Claims about what a probe finds: the same runner, block by block, each reading made once."""

import random
from pathlib import Path

import pytest
import torch

from trimtab.core.card import Claim
from trimtab.core.errors import UsageError
from trimtab.core.observed import Observed
from trimtab.core.recipe import Calibration
from trimtab.core.registry import get, ids
from trimtab.data.windows import calibration_windows
from trimtab.engine.probe import probe
from trimtab.host.checkpoint import load
from trimtab.measure import finding_store
from trimtab.measure.claims import PROBED, QUICK, age, check_claim, claims_of, code_for, run_claim, setting_for
from trimtab.measure.claims_page import measured_here, numbers
from trimtab.measure.evidence import missing
from trimtab.measure.programme import Task, run_programme
from trimtab.measure.side_store import Ground
from trimtab.measure.sides import Setting
from trimtab.testing.folders import tiny_folder

GAIN = Claim("c", "top_singular: gain", ">", "top_singular: sigma_max", metric="finding")  # no gain is above the largest
FOUND = {"adds": {0: 9.0, 1: 4.0, 2: 3.0, 3: 2.0, 4: 1.0}, "gain": {}}


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    draw = random.Random(0)
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join("".join(draw.choices("abcdefgh ", k=100)) for _ in range(20)), encoding="utf-8")
    model = tiny_folder(tmp_path / "model", num_hidden_layers=3)
    return Setting(str(model), str(text), 3, 16, Calibration(str(text), 64, 16), (0, 1))


def test_sides_are_read() -> None:
    assert Observed.of("0.5") == Observed(None, value=0.5)
    assert Observed.of("sensitivity(bits=3): KL") == Observed(get("sensitivity")(bits=3), "KL")
    half = Observed.of("depth_efficiency: adds, second half")
    assert (half.finding, half.half) == ("adds", "second half")
    assert Observed.of("update_geometry: cos(u,t)").finding == "cos(u,t)"


def test_halves_leave_out_the_middle() -> None:
    def units(text: str) -> dict[int, float]:
        return Observed.of(f"depth_efficiency: {text}").of_units(FOUND)

    assert units("adds") == FOUND["adds"]
    assert units("adds, first half") == {0: 9.0, 1: 4.0}
    assert units("adds, second half") == {0: 2.0, 1: 1.0}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("half", "'half' is neither a number nor PROBE: FINDING"),
        ("rtn: KL", "'rtn' in 'rtn: KL' is not one probe"),
        ("depth_efficiency: add", "finds no 'add'; did you mean 'adds'"),
        ("depth_efficiency: gain", "no block of this model has 'gain'"),
    ],
)
def test_what_is_no_side(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Observed.of(text).of_units(FOUND)


def test_a_line_says_what_the_probe_finds(setting: Setting) -> None:
    line = run_claim("top_singular", GAIN, setting)
    assert (line["status"], line["n"], line["seeds"], age(GAIN, line)) == ("fails", 3, [0, 1], "")
    model, tokenizer = load(setting.model)
    assert tokenizer is not None
    for number, seed in enumerate(setting.seeds):
        (findings,) = probe(model, calibration_windows(setting.text, tokenizer, 64, 16, seed), [get("top_singular")()], seed)
        gains = [m.value for finding in findings for m in finding.measurements if m.name == "gain"]
        assert line["left_values"][number] == pytest.approx(sum(gains) / 3, rel=1e-12)
    gap = sum(line["left_values"]) / 2 - sum(line["right_values"]) / 2
    assert line["difference"] == pytest.approx(gap, abs=1e-12)
    assert measured_here(line).startswith("model: ")
    assert numbers(line)[1:3] == ("-", "3 x 2")


def test_a_number_is_the_same_in_every_block(setting: Setting) -> None:
    line = run_claim("top_singular", Claim("c", "top_singular: sigma_max", ">", "0", metric="finding"), setting)
    assert (line["status"], line["right_values"]) == ("holds", [0.0, 0.0])
    with pytest.raises(UsageError, match="compares two numbers"):
        run_claim("top_singular", Claim("c", "1", ">", "0", metric="finding"), setting)
    unlike = Claim("c", "top_singular: gain", ">", "top_singular: gain, first half", metric="finding")
    with pytest.raises(UsageError, match="about different blocks"):
        run_claim("top_singular", unlike, setting)


def test_a_reading_is_made_once_and_can_be_checked(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    ground = Ground.of(setting)
    assert missing(GAIN, setting, ground) == 2
    line = run_claim("top_singular", GAIN, setting, ground=ground)
    assert missing(GAIN, setting, ground) == 0
    monkeypatch.setattr(finding_store, "read_model", lambda *given: pytest.fail("made twice"))
    other = Claim("d", "top_singular: gain", "<", "top_singular: stable rank", metric="finding")
    assert run_claim("top_singular", other, setting, ground=ground)["left_values"] == line["left_values"]
    assert check_claim("top_singular", GAIN, {**line, "code": "older"}, setting, ground=ground)["code"] == code_for(GAIN)
    changed = {**line, "right_values": [0.0, 0.0]}
    with pytest.raises(UsageError, match="top_singular: sigma_max, seed 0, was 0 and is"):
        check_claim("top_singular", GAIN, changed, setting, ground=ground)


@pytest.mark.slow
def test_it_runs_in_a_process_of_its_own(setting: Setting) -> None:
    (claim,) = claims_of("top_singular")
    outcomes = []
    run_programme([Task("top_singular", claim, setting)], outcomes.append)
    (outcome,) = outcomes
    assert outcome.line is not None, outcome.error
    assert outcome.line["left_values"] == run_claim("top_singular", claim, setting)["left_values"]
    assert torch.tensor(outcome.line["left_values"]).isfinite().all()


def test_probes_are_shown_less_unless_more_is_asked_for() -> None:
    assert setting_for(GAIN).calibration.tokens == PROBED
    assert setting_for(GAIN, QUICK).calibration.length == QUICK.calibration.length
    assert setting_for(GAIN, shown={"tokens": 4096}).calibration.tokens == 4096


@pytest.mark.parametrize("id", ids())
def test_every_method_claims_something_or_is_a_baseline(id: str) -> None:
    card = get(id).card
    assert bool(card.claims) != card.baseline, f"{id} needs a claim, or baseline=True on its card, and not both"

"""Claims: the status follows from the interval alone, and both sides see the same tokens."""

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest

from trimtab.core.card import Claim
from trimtab.core.errors import UsageError
from trimtab.core.recipe import Calibration
from trimtab.measure import claims, side_store
from trimtab.measure.claims import LESSONS, QUICK, age, code_for, find_claim, run_claim, setting_for, statement, status
from trimtab.measure.claims_page import aged_status, measured_here, numbers, quoted, render
from trimtab.measure.ledger import append
from trimtab.measure.paired import PairedDifference
from trimtab.measure.sides import Setting
from trimtab.testing.folders import tiny_folder

BELOW = PairedDifference(-0.2, -0.3, -0.1, 24, 3)
ABOVE = PairedDifference(0.2, 0.1, 0.3, 24, 3)
ACROSS = PairedDifference(-0.1, -0.3, 0.1, 24, 3)
LINE = {
    **{"method": "wanda", "claim": "beats-magnitude", "status": "holds", "model": "asset:smollm2-135m"},
    **{"difference": -0.2, "low": -0.3, "high": -0.1, "n": 24, "seeds": [0, 1, 2]},
    **{"left_ppl": [30.0, 32.0], "right_ppl": [2000.0], "base_ppl": 25.0, "left_bits": 16.0, "right_bits": 16.0},
}


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    folder = tmp_path_factory.mktemp("claims")
    draw = random.Random(0)
    text = folder / "text.txt"
    text.write_text("\n\n".join("".join(draw.choices("abcdefgh ", k=200)) for _ in range(60)), encoding="utf-8")
    model = tiny_folder(folder / "model", num_hidden_layers=2)
    return Setting(str(model), str(text), 6, 32, Calibration(str(text), 256, 32), (0, 1))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("found", "relation", "expected"),
    [
        (BELOW, "<", "holds"),
        (BELOW, ">", "fails"),
        (ABOVE, "<", "fails"),
        (ABOVE, ">", "holds"),
        (ACROSS, "<", "not separable"),
        (ACROSS, ">", "not separable"),
    ],
)
def test_status_is_read_off_the_interval(found: PairedDifference, relation: str, expected: str) -> None:
    assert status(Claim("c", "a", relation, "b"), found) == expected  # type: ignore[arg-type]


def test_a_claim_against_itself_is_not_separable(setting: Setting) -> None:
    line = run_claim("rtn", Claim("self", "rtn(bits=4, group_size=16)", "<", "rtn(bits=4, group_size=16)"), setting)
    assert (line["status"], line["difference"], line["low"], line["high"]) == ("not separable", 0.0, 0.0, 0.0)


def test_a_result_says_everything(setting: Setting) -> None:
    claim = Claim("x", "gptq(bits=2, group_size=16)", "<", "rtn(bits=8, group_size=16)")
    line = run_claim("gptq", claim, setting)
    assert {"method", "claim", "status", "low", "high", "n", "model", "commit", "code", "seconds", "date"} <= line.keys()
    assert line["right_bits"] == pytest.approx(8 + 24 / 16)
    assert line["seeds"] == [0, 1]
    assert line["setting"]["model_history"] is None
    assert (line["statement"], line["code"], age(claim, line)) == (statement(claim), code_for(claim), "")
    # The difference is that of the two perplexities, and the model itself is nearest to what 8 bits leave of it.
    logs = [sum(map(math.log, line[side])) / len(line[side]) for side in ("left_ppl", "right_ppl")]
    assert line["difference"] == pytest.approx(logs[0] - logs[1], abs=1e-9)
    assert line["right_ppl"][0] == pytest.approx(line["base_ppl"], rel=0.01)
    assert json.loads(json.dumps(line)) == {**line, "setting": json.loads(json.dumps(line["setting"]))}


def test_claims_share_sides(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []
    really = side_store.measure_side
    monkeypatch.setattr(side_store, "measure_side", lambda *given: measured.append(str(given[1])) or really(*given))
    one = Claim("one", "gptq(bits=3, group_size=16)", "<", "rtn(bits=3, group_size=16)")
    other = Claim("other", "gptq(bits=3, group_size=16)", ">", "rtn(bits=2, group_size=16)")
    first = run_claim("gptq", one, setting)
    assert len(measured) == len({None}) + len(setting.seeds) + 1
    second = run_claim("gptq", other, setting)
    assert measured[4:] == ["rtn(bits=2, group_size=16)"]
    assert second["left_ppl"] == first["left_ppl"]
    assert run_claim("gptq", one, setting) == first


def test_a_claim_may_name_what_it_is_run_on() -> None:
    claim = Claim("c", "rtn", "<", "rtn(bits=2)", model="asset:own-5m-outliers")
    assert setting_for(claim) == replace(Setting(), model="asset:own-5m-outliers")
    assert setting_for(claim, Setting(windows=3), text="a.txt") == Setting("asset:own-5m-outliers", "a.txt", 3)
    assert setting_for(claim, model="mine").model == "mine"
    assert setting_for(Claim("c", "rtn", "<", "rtn(bits=2)", text="b.txt")) == replace(Setting(), text="b.txt")


def test_a_side_that_trains_reads_little_twice():
    def tokens(left: str, right: str = "rtn", **given) -> int:
        return setting_for(Claim("c", left, "<", right), **given).calibration.tokens

    assert tokens("rtn(bits=2)") == 8192
    assert tokens("recover(steps=2, windows=3)") == 8192
    assert tokens("rtn", "magnitude -> recover(steps=10, windows=2) -> distill(steps=5, windows=4)") == (20 + 20) * 512
    assert tokens("recover(steps=300)", "distill(steps=10)") == LESSONS * 8192
    assert tokens("recover(steps=300)", shown={"tokens": 4096}) == 4096
    assert tokens("recover(steps=300)", standard=QUICK) == LESSONS * QUICK.calibration.tokens


def test_results_of_other_code_or_wording_are_called_that(monkeypatch: pytest.MonkeyPatch) -> None:
    claim = Claim("c", "rtn(bits=3)", "<", "rtn(bits=2)")
    line = {**LINE, "statement": statement(claim), "code": code_for(claim)}
    assert aged_status(claim, line) == "holds"
    assert aged_status(claim, LINE) == "holds (older code)"  # from before digests were written down
    assert aged_status(replace(claim, left="rtn(bits=4)"), line) == "holds (other statement)"
    assert aged_status(replace(claim, note="more", published="1 < 2"), line) == "holds"
    assert aged_status(claim, None) == "not run"
    monkeypatch.setattr(claims, "digest_of", lambda modules: "later")
    assert aged_status(claim, line) == "holds (older code)"


def test_the_page_lists_every_claim_and_sets_it_beside_the_paper(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    append(LINE, ledger)
    page = render(ledger)
    assert "| wanda | beats-magnitude | `wanda(sparsity=0.5)` < `magnitude(sparsity=0.5)` | **holds (older" in page
    here = "smollm2-135m: 31.00 < 2,000, n = 24 x 3, 95 % interval -0.3000 to -0.1000"
    assert f"| wanda | beats-magnitude | 7.26 < 17.29, LLaMA-7B, WikiText2 | {here} | 25.00 | holds (older code) |" in page
    assert "| gptq | beats-rtn-at-3-bit | `gptq(bits=3)` < `rtn(bits=3)` | not run |" in page
    assert "1 holds, 0 fails, 0 not separable" in page
    assert " not run; older code: 1." in page
    columns = {line.count(" | ") for line in page.splitlines() if line.startswith("| wanda")}
    assert columns == {5, 7}


def test_a_claim_with_a_model_of_its_own_says_so() -> None:
    assert quoted(Claim("c", "rtn", "<", "rtn(bits=2)", model="asset:own-5m")) == "`rtn` < `rtn(bits=2)` on own-5m"


def test_columns_without_a_result_are_empty() -> None:
    assert {*numbers(None)} == {""}
    assert measured_here(None) == "-"
    assert measured_here({**LINE, "right_ppl": [31.0]}).startswith("smollm2-135m: 31.00 = 31.00,")


def test_an_unknown_claim_is_one_clear_error() -> None:
    with pytest.raises(UsageError, match="did you mean 'beats-magnitude'"):
        find_claim("wanda", "beats-magnitud")

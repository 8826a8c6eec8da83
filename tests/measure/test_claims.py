"""Claims: the status follows from the interval alone, the ledger only grows, and both sides see the same tokens."""

import json
import random
from pathlib import Path

import pytest

from trimtab.core.card import Claim
from trimtab.core.errors import UsageError
from trimtab.core.recipe import Calibration
from trimtab.measure import claims
from trimtab.measure.claims import Setting, append, find_claim, latest, read, render, run_claim, status
from trimtab.measure.paired import PairedDifference
from trimtab.testing.folders import tiny_folder

BELOW = PairedDifference(-0.2, -0.3, -0.1, 24, 3)
ABOVE = PairedDifference(0.2, 0.1, 0.3, 24, 3)
ACROSS = PairedDifference(-0.1, -0.3, 0.1, 24, 3)


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    folder = tmp_path_factory.mktemp("claims")
    draw = random.Random(0)
    text = folder / "text.txt"
    text.write_text("\n\n".join("".join(draw.choices("abcdefgh ", k=200)) for _ in range(60)), encoding="utf-8")
    model = tiny_folder(folder / "model", num_hidden_layers=2)
    return Setting(str(model), str(text), 6, 32, Calibration(str(text), 256, 32), (0, 1))


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


def test_a_true_claim_holds_and_says_everything(setting: Setting) -> None:
    line = run_claim("rtn", Claim("bits", "rtn(bits=8, group_size=16)", "<", "magnitude(sparsity=0.9)"), setting)
    assert line["difference"] < 0 or line["status"] != "holds"
    assert {"method", "claim", "status", "difference", "low", "high", "n", "seeds", "model", "commit"} <= line.keys()
    assert line["left_bits"] == pytest.approx(8 + 24 / 16)
    assert line["seeds"] == [0, 1]
    json.dumps(line)


def test_the_difference_is_that_of_the_two_perplexities(setting: Setting) -> None:
    import math

    line = run_claim("gptq", Claim("x", "gptq(bits=2, group_size=16)", "<", "rtn(bits=8, group_size=16)"), setting)
    logs = [sum(map(math.log, line[side])) / len(line[side]) for side in ("left_ppl", "right_ppl")]
    assert line["difference"] == pytest.approx(logs[0] - logs[1], abs=1e-9)


def test_what_no_seed_can_change_is_measured_once(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    claims._measured.cache_clear()
    run_claim("rtn", Claim("c", "rtn(bits=3, group_size=16)", "<", "gptq(bits=3, group_size=16)"), setting)
    assert claims._measured.cache_info().misses == 1 + len(setting.seeds)


def test_the_ledger_grows_and_the_last_line_counts(tmp_path: Path) -> None:
    ledger = tmp_path / "claims" / "ledger.jsonl"
    line = {
        "method": "wanda",
        "claim": "beats-magnitude",
        "status": "fails",
        "difference": 0.2,
        "low": 0.1,
        "high": 0.3,
        "n": 24,
        "seeds": [0, 1, 2],
        "left_ppl": [2.0],
        "right_ppl": [1.0],
        "left_bits": 16.0,
        "right_bits": 16.0,
    }
    append(line, ledger)
    append({**line, "status": "holds"}, ledger)
    assert [entry["status"] for entry in read(ledger)] == ["fails", "holds"]
    assert latest(read(ledger))["wanda", "beats-magnitude"]["status"] == "holds"
    page = render(ledger)
    assert "| wanda | beats-magnitude |" in page
    assert "**holds**" in page
    assert "not run" in page  # every other claim is listed all the same


def test_an_unknown_claim_is_one_clear_error() -> None:
    with pytest.raises(UsageError, match="did you mean 'beats-magnitude'"):
        find_claim("wanda", "beats-magnitud")

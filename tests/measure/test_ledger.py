"""The ledger only grows, line by line, whoever writes and whatever was cut off before."""

import json
import multiprocessing
from pathlib import Path

import pytest

from trimtab.core.errors import UsageError
from trimtab.measure.ledger import append, latest, read

LINE = {"method": "wanda", "claim": "beats-magnitude", "status": "fails"}


def test_the_last_line_of_a_claim_counts(tmp_path: Path) -> None:
    ledger = tmp_path / "claims" / "ledger.jsonl"
    assert read(ledger) == []
    append(LINE, ledger)
    append({**LINE, "status": "holds"}, ledger)
    assert [entry["status"] for entry in read(ledger)] == ["fails", "holds"]
    assert latest(read(ledger))["wanda", "beats-magnitude"]["status"] == "holds"


@pytest.mark.parametrize("kept", [1, 20, len(json.dumps(LINE)) - 1])
def test_a_cut_line_is_named_and_stays_alone(tmp_path: Path, kept: int) -> None:
    ledger = tmp_path / "ledger.jsonl"
    append(LINE, ledger)
    cut = json.dumps(LINE)[:kept]
    with ledger.open("a", encoding="utf-8") as file:
        file.write(cut)
    for _ in range(2):
        with pytest.raises(UsageError, match=r"ledger\.jsonl:2 is damaged.*remove this line and run its claim again") as raised:
            read(ledger)
        assert "\n" not in str(raised.value)
        append({**LINE, "status": "holds"}, ledger)
    rows = ledger.read_text(encoding="utf-8").split("\n")
    assert rows == [json.dumps(LINE), cut, *[json.dumps({**LINE, "status": "holds"})] * 2, ""]
    # Doing what the message says is enough.
    ledger.write_text("\n".join([rows[0], *rows[2:]]), encoding="utf-8")
    assert [entry["status"] for entry in read(ledger)] == ["fails", "holds", "holds"]


def test_a_whole_line_without_its_end_is_read_and_not_grown_together(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    ledger.write_text(json.dumps(LINE), encoding="utf-8")
    append(LINE, ledger)
    assert read(ledger) == [LINE, LINE]


@pytest.mark.parametrize("row", ["3", "[]", '{"method": "gptq"}', "\x00\x00", "[" * 100_000])
def test_what_is_no_result_is_named(tmp_path: Path, row: str) -> None:
    ledger = tmp_path / "ledger.jsonl"
    ledger.write_text(f"{json.dumps(LINE)}\n{row}\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"ledger\.jsonl:2 is"):
        read(ledger)


def test_two_writers_do_not_mix(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    writers = [multiprocessing.get_context("fork").Process(target=_write, args=(ledger, name)) for name in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    found = read(ledger)
    assert [sum(line["claim"] == name for line in found) for name in "ab"] == [20, 20]


def _write(ledger: Path, name: str) -> None:
    for _ in range(20):
        append({**LINE, "claim": name, "filler": "x" * 100_000}, ledger)

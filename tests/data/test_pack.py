"""Items out of a miniature of the pack with all its habits, and out of files of the user's."""

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from trimtab.core.errors import DataError
from trimtab.data import pack
from trimtab.data.evidence import ARMS
from trimtab.data.pack import SOURCES, file_requests, pack_requests

Row = dict[str, Any]
ARC, WINOGRANDE, BOOLQ, DROP, SQUAD, SCIQ, CODE, NATURALQS = (
    *("arc_easy/test_rc_5shot", "winogrande/rc_0shot", "boolq/rc_0shot", "drop/bpb_5shot", "squad/bpb_5shot"),
    *("sciq/rc_0shot", "basic_skills_coding/rc_5shot", "naturalqs_open/bpb_5shot"),
)


def rows(number: int, label: Any, doc: Row, pairs: list[tuple[str, str]]) -> list[Row]:
    return [
        {"doc_id": number, "idx": i, "label": label, "doc": doc, "request": {"context": context, "continuation": continuation}}
        for i, (context, continuation) in enumerate(pairs)
    ]


def second_copy(first: list[Row]) -> list[Row]:
    return [{**row, "doc_id": row["doc_id"] + 1_000_000, "request": row["request"] | {"context": "Answer:"}} for row in first]


QUESTION = {"query": "Question: two plus two?\nAnswer:", "choices": ["four", "five"]}
MANY_SHOTS = "Question: one?\nAnswer: one\n\nQuestion: two plus two?\nAnswer:"
FIRST = rows(0, 1, QUESTION, [(MANY_SHOTS, " five"), (MANY_SHOTS, " four")])
SUPPORT = {"question": "What shines?", "support": "The sun shines.", "correct_answer": "Sun"}
UNSUPPORTED = {"question": "What else?", "support": "", "correct_answer": "moon"}
PASSAGE = "Title: Old_Town\nBackground: It was\nQuestion: built\nin 1900.\nQuestion: When was it built?\nAnswer:"
MINIATURE = {
    ARC: [*FIRST, *rows(7, 0, QUESTION, [(MANY_SHOTS, " a")]), *second_copy(FIRST)],
    WINOGRANDE: rows(3, 0, {}, [("Ann met Bea so Ann", " left."), ("Ann met Bea so Bea", " left.")]),
    DROP: rows(0, [["3", "4"], ["7"]], {"query": "Passage: p\nQuestion: q?\nAnswer:"}, [("shots", " ('3', '4')")]),
    SQUAD: rows(5, ["1900", "in 1900", "1900"], {"query": PASSAGE, "title": "Old_Town"}, [("shots", " 1900")]),
    SCIQ: [
        *rows(0, 1, SUPPORT, [("Question: What shines?\nAnswer:", " ice"), ("Question: What shines?\nAnswer:", " Sun")]),
        *rows(1, 0, UNSUPPORTED, [("Question: What else?\nAnswer:", " moon")]),
    ],
    NATURALQS: rows(0, ["Ann"], {"question": "who"}, [("shots", " Ann")]),
    **{file: rows(0, 0, {"question": "1 + 1 ="}, [("shots", " 2"), ("shots", " 3")]) for file in SOURCES["basic_skills"].files},
}


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, content in MINIATURE.items():
        write(tmp_path, name, content)
    monkeypatch.setattr(pack, "fetch", lambda asset: tmp_path)
    return tmp_path


def write(shelf: Path, name: str, content: list[Any]) -> None:
    path = shelf / pack.TASK_FILE.format(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [line if isinstance(line, str) else json.dumps(line) for line in content]
    path.write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode()))


def test_every_item_once_and_without_worked_examples(shelf: Path) -> None:
    first, last = pack_requests("arc_easy")
    assert (first.id, last.id) == ("0", "7")
    assert first.contexts == ("Question: two plus two?\nAnswer:",) * 2
    assert first.continuations == (" five", " four")
    assert (first.gold, last.gold) == (1, 0)


def test_the_contexts_differ_where_the_ending_is_shared(shelf: Path) -> None:
    (item,) = pack_requests("winogrande")
    assert item.contexts == ("Ann met Bea so Ann", "Ann met Bea so Bea")
    assert item.continuations == (" left.", " left.")


def test_gold_answers_are_words_and_all_that_count_are_kept(shelf: Path) -> None:
    (drop,), (squad,), (natural,) = (pack_requests(task) for task in ("drop", "squad", "naturalqs"))
    assert (drop.continuations, drop.answers) == ((" 3, 4",), ("3, 4", "7"))
    assert (squad.continuations, squad.answers, squad.domain) == ((" 1900",), ("1900", "in 1900"), "Old_Town")
    assert (natural.contexts, natural.continuations) == (("Question: who\nAnswer:",), (" Ann",))


def test_a_task_of_several_files_has_them_as_domains(shelf: Path) -> None:
    items = pack_requests("basic_skills")
    assert [item.id for item in items][1] == "basic_skills_coding/0"
    assert [item.domain for item in items][1] == "basic_skills_coding"
    assert len({item.id for item in items}) == 6


def test_arms_are_the_same_items_with_and_without_their_passage(shelf: Path) -> None:
    closed, opened = ARMS["kick:closed"].requests(), ARMS["kick:open"].requests()
    assert [item.id for item in closed] == [item.id for item in opened] == ["squad/5", "sciq/0"]  # sciq/1 has no passage
    asked = "Question: Old Town: When was it built?\nAnswer:"
    example, _, question = closed[0].contexts[0].partition("\n\n")
    assert (example[-13:], question) == ("\nAnswer: eels", asked)
    assert opened[0].contexts[0].endswith(f" eels\n\nIt was\nQuestion: built\nin 1900.\n{asked}")
    assert closed[1].continuations == opened[1].continuations == (" Sun",)
    (choice,), (with_passage,) = ARMS["kick:closed-choice"].requests(), ARMS["kick:open-choice"].requests()
    assert (choice.continuations, choice.gold) == ((" ice", " Sun"), 1)
    assert with_passage.contexts[0].endswith("\n\nThe sun shines.\nQuestion: What shines?\nAnswer:")


DAMAGED = {
    "no label": ({**FIRST[0], "label": None}, "its label is None, it must be a number from 0 to 0"),
    "label beyond the choices": ({**FIRST[0], "label": 4}, "its label is 4, it must be a number from 0 to 0"),
    "label in words": ({**FIRST[0], "label": "A"}, "its label is 'A'"),
    "no request": ({key: FIRST[0][key] for key in ("doc_id", "label", "doc")}, "KeyError 'request'"),
    "no number": ({"label": 0}, "it has no doc_id"),
    "no object": ("[1, 2]", "not a JSON object"),
    "half a line": ('{"doc_id": 0, "la', "not a JSON object"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_line_is_named(shelf: Path, case: str) -> None:
    line, message = DAMAGED[case]
    write(shelf, ARC, [line])
    with pytest.raises(DataError, match=rf"requests\.jsonl\.gz:1 is no task item: .*{message}"):
        pack_requests("arc_easy")


def test_a_gold_answer_without_an_answer_is_named(shelf: Path) -> None:
    write(shelf, DROP, rows(0, [], {"query": "q"}, [("shots", " x")]))
    with pytest.raises(DataError, match=r":1 is no task item: label \[\] is no answer; mend the line"):
        pack_requests("drop")


def test_a_damaged_archive_is_one_line(shelf: Path) -> None:
    path = shelf / pack.TASK_FILE.format(ARC)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"cannot read the task file .*requests\.jsonl\.gz: .*; remove it"):
        pack_requests("arc_easy")


def test_an_unknown_task_suggests_a_known_one() -> None:
    with pytest.raises(DataError, match=r"the pack has no task 'arc_esy'; did you mean 'arc_easy'\?"):
        pack_requests("arc_esy")


def test_own_items(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    choice = {"context": "1 + 1 =", "continuations": [" 2", " 3"], "gold": 0, "domain": "sums"}
    answer = {"context": "1 + 1 =", "continuations": [" 2"], "gold": 0}
    file.write_text(f"{json.dumps(choice)}\n\n{json.dumps(answer)}\n", encoding="utf-8")
    first, second = file_requests(file)
    assert (first.id, first.contexts, first.continuations, first.gold) == ("1", ("1 + 1 =",) * 2, (" 2", " 3"), 0)
    assert (first.domain, first.answers) == ("sums", ())
    assert (second.id, second.answers) == ("3", ("2",))


OWN = {
    '{"continuations": ["a"], "gold": 0}': 'it has no string field "context"',
    '{"context": "c", "continuations": [], "gold": 0}': 'its field "continuations" is no list of texts',
    '{"context": "c", "continuations": ["a", ""], "gold": 0}': 'its field "continuations" is no list of texts',
    '{"context": "c", "continuations": ["a", "b"]}': 'it has no label: the field "gold" is missing',
    '{"context": "c", "continuations": ["a", "b"], "gold": 2}': "its label is 2, it must be a number from 0 to 1",
    '{"context": "c", "continuations": ["a", "b"], "gold": true}': "its label is True",
    '{"context"': "not a JSON object",
    "[" * 100_000: "not a JSON object",
}


@pytest.mark.parametrize("line", OWN, ids=OWN.values())
def test_a_bad_line_of_ones_own_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text(f'{{"context": "c", "continuations": ["a"], "gold": 0}}\n{line}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"mine\.jsonl:2 is no task item: ") as caught:
        file_requests(file)
    assert OWN[line] in str(caught.value)


def test_a_file_that_is_empty_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match=r"empty\.jsonl holds no items"):
        file_requests(tmp_path / "empty.jsonl")
    with pytest.raises(DataError, match=r"cannot read the task file .*absent\.jsonl"):
        file_requests(tmp_path / "absent.jsonl")


COUNTS = {"arc_challenge": 1172, "arc_easy": 2376, "boolq": 3270, "csqa": 1221, "drop": 1000, "openbookqa": 500, "piqa": 1838}
COUNTS |= {"sciq": 1000, "socialiqa": 1954, "squad": 1000, "winogrande": 1267, "naturalqs": 1000, "jeopardy": 2116}


@pytest.mark.real
@pytest.mark.parametrize("task", COUNTS)
def test_the_pack_is_as_it_is_described(task: str) -> None:
    items = pack_requests(task)
    assert len(items) == len({item.id for item in items}) == COUNTS[task]
    for item in items:
        assert all(item.contexts)
        assert all(text.startswith(" ") and text.strip() for text in item.continuations)
        assert not any("\n\n" in context for context in item.contexts if task in ("arc_easy", "naturalqs", "jeopardy"))


@pytest.mark.real
def test_the_labels_of_boolq_mean_what_they_should() -> None:
    """Of the validation questions 62.17 % are to be answered with yes."""
    items = pack_requests("boolq")
    said = Counter(item.continuations[item.gold] for item in items)
    assert said == {" yes": 2033, " no": 1237}


@pytest.mark.real
def test_every_open_question_has_its_answer_in_the_prompt() -> None:
    closed, opened = ARMS["kick:closed"].requests(), ARMS["kick:open"].requests()
    assert [item.id for item in closed] == [item.id for item in opened]
    for shut, item in zip(closed, opened, strict=True):
        (prompt,), (question,) = item.contexts, shut.contexts
        assert any(answer.lower() in prompt.lower() for answer in item.answers)
        assert prompt.endswith(question.partition("\n\n")[2])

"""Questions with known answers, read from the offline pack or from a file of the user's.

The pack holds ready-made requests, with habits that would spoil the numbers: many files hold every item a second time for
unconditional normalisation (`doc_id` from 1000000 on), some put worked examples before every question, one writes its
answers as Python tuples. Here everything is asked without examples, and every item occurs once.

Splits are those that are usually reported: test for ARC and OpenBookQA, validation for the rest. The right answer of SciQ
is always the last choice; equal scores count for the first, so a model that cannot tell is never favoured.
"""

import gzip
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from trimtab.core.errors import DataError, did_you_mean
from trimtab.data.assets import TASK_FILE, TEXT, fetch
from trimtab.data.text import HALVES

SECOND_COPY = 1_000_000
Row = dict[str, Any]
Wording = Callable[[Row], str]


@dataclass(frozen=True)
class Request:
    """One item: which of the continuations does a model find likeliest, each after its context?

    contexts, continuations: one of each per choice; a single pair where there is a gold answer and no choice.
    gold: index of the right choice. domain: what the item is about, or "". answers: for a gold answer, all texts that count
    as the same answer.
    """

    id: str
    contexts: tuple[str, ...]
    continuations: tuple[str, ...]
    gold: int
    domain: str = ""
    answers: tuple[str, ...] = ()


def _given(row: Row) -> str:
    return str(row["request"]["context"])


def _query(row: Row) -> str:
    return str(row["doc"]["query"])


def _question(row: Row) -> str:
    return f"Question: {row['doc']['question']}\nAnswer:"


def _unfinished(row: Row) -> str:
    return str(row["doc"]["question"])


def _alone(row: Row) -> str:
    return ""


def _of_doc(field: str) -> Wording:
    return lambda row: str(row["doc"][field])


def _labels(row: Row) -> list[str]:
    """A list of texts, a text, or a list of lists of spans that belong together."""
    label = row["label"]
    if not isinstance(label, str | list) or not label:
        raise ValueError(f"label {label!r:.40} is no answer")
    several = [label] if isinstance(label, str) else label
    return [", ".join(answer) if isinstance(answer, list) else str(answer) for answer in several]


def _written_out(row: Row) -> list[str]:
    return [str(row["doc"]["choices"][0])]


@dataclass(frozen=True)
class Source:
    """What a task asks, where its items are and how they are worded.

    domain: where there are several files, the file's folder is the domain instead. answers: given for tasks with a gold
    answer instead of choices.
    """

    about: str
    files: tuple[str, ...]
    context: Wording = _given
    domain: Wording = _alone
    answers: Callable[[Row], list[str]] | None = None


SKILLS = tuple(
    f"basic_skills_{skill}/rc_5shot"
    for skill in ("arithmetic", "coding", "common_knowledge", "logical_reasoning", "pattern", "string_operations")
)
SOURCES: dict[str, Source] = {
    "arc_challenge": Source("school science questions that are hard to guess", ("arc_challenge/test_rc_5shot",), _query),
    "arc_easy": Source("school science questions", ("arc_easy/test_rc_5shot",), _query),
    "basic_skills": Source("what small models already manage, by skill", SKILLS, _unfinished),
    "boolq": Source("yes or no, after a passage", ("boolq/rc_0shot",)),
    "coqa": Source("a conversation about a passage, gold answer", ("coqa/bpb_0shot",), _given, _of_doc("source"), _labels),
    "csqa": Source("CommonsenseQA", ("csqa/rc_0shot",)),
    "drop": Source("counting and comparing in a passage, gold answer", ("drop/bpb_5shot",), _query, _alone, _labels),
    "gsm8k": Source("sums in words, worked out, gold answer", ("gsm8k/gold_bpb_5shot",), _question, _alone, _written_out),
    "hellaswag": Source("how everyday scenes go on", ("hellaswag/rc_0shot",)),
    "jeopardy": Source("quiz clues, gold answer", ("jeopardy/bpb_5shot",), _query, _of_doc("category"), _labels),
    "lambada": Source("the last word of a passage from a novel, gold answer", ("lambada/bpb_0shot",), _given, _alone, _labels),
    "naturalqs": Source("what people search for, gold answer", ("naturalqs_open/bpb_5shot",), _question, _alone, _labels),
    "openbookqa": Source("elementary science facts applied", ("openbookqa/test_rc_5shot",), _query),
    "piqa": Source("how to do things with things", ("piqa/rc_0shot",)),
    "sciq": Source("science exam questions", ("sciq/rc_0shot",)),
    "socialiqa": Source("why people act, and what they do next", ("socialiqa/rc_0shot",)),
    "squad": Source("answers found in a passage, gold answer", ("squad/bpb_5shot",), _query, _of_doc("title"), _labels),
    "winogrande": Source("whom a pronoun means", ("winogrande/rc_0shot",)),
}


def pack_requests(task: str) -> list[Request]:
    """All items of a task of the pack, in its order. Raises DataError for an unknown task or a damaged file."""
    if task not in SOURCES:
        raise DataError(f"the pack has no task {task!r}{did_you_mean(task, SOURCES)}")
    source = SOURCES[task]
    return [_request(place, rows, source) for place, rows in pack_items(task)]


def pack_items(task: str) -> Iterator[tuple[str, list[Row]]]:
    """Per item of a task: its place for messages, and its rows as they are stored, one per choice."""
    for file in SOURCES[task].files:
        path = fetch(TEXT) / TASK_FILE.format(file)
        items: dict[int, list[Row]] = {}
        places: dict[int, str] = {}
        for place, row in _rows(path):
            number = row.get("doc_id")
            if not isinstance(number, int):
                _damaged(place, "it has no doc_id")
            if number < SECOND_COPY:
                items.setdefault(number, []).append(row)
                places.setdefault(number, place)
        yield from ((places[number], rows) for number, rows in items.items())


def _rows(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                place = f"{path}:{number}"
                yield place, _object(line, place)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the task file {path}: {error}; remove it with its folder and run again") from error


def _object(line: str, place: str) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place} is no task item: not a JSON object ({error!s:.200})") from error
    if not isinstance(row, dict):
        _damaged(place, "not a JSON object")
    return row


def _request(place: str, rows: list[Row], source: Source) -> Request:
    folder, number = Path(place).parts[-3], rows[0]["doc_id"]
    several = len(source.files) > 1
    id = f"{folder}/{number}" if several else str(number)
    try:
        domain = folder if several else source.domain(rows[0])
        if source.answers is None:
            contexts, continuations = zip(*((source.context(row), _continuation(row)) for row in rows), strict=True)
            return Request(id, contexts, continuations, _gold(rows[0]["label"], len(rows)), domain)
        answers = source.answers(rows[0])
        return Request(id, (source.context(rows[0]),), (f" {answers[0]}",), 0, domain, tuple(dict.fromkeys(answers)))
    except (KeyError, TypeError, IndexError) as error:
        _damaged(place, f"{type(error).__name__} {error}", error)
    except ValueError as error:
        _damaged(place, str(error), error)


def _continuation(row: Row) -> str:
    return str(row["request"]["continuation"])


def _gold(label: Any, choices: int) -> int:
    if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < choices:
        raise ValueError(f"its label is {label!r:.40}, it must be a number from 0 to {choices - 1}")
    return label


def _damaged(place: str, why: str, cause: Exception | None = None) -> NoReturn:
    raise DataError(f"{place} is no task item: {why}; mend the line, or remove the file so that it is fetched again") from cause


def file_requests(path: Path) -> list[Request]:
    """Items of a .jsonl file of the user's, one a line:

    {"context": "Question: 2 + 2?\\nAnswer:", "continuations": [" 4", " 5"], "gold": 0, "domain": "sums"}

    Continuations follow the context as they are, so they begin with their own space. One continuation makes a gold
    answer. `domain` may be left out. Raises DataError naming the line.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the task file {path}: {error}") from error
    found = [_own(_object(line, f"{path}:{number}"), f"{path}:{number}") for number, line in _numbered(lines)]
    if not found:
        raise DataError(f"{path} holds no items; write one JSON object a line")
    return found


def _numbered(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    return ((number, line) for number, line in enumerate(lines, 1) if line.strip())


def _own(row: Row, place: str) -> Request:
    context, continuations = row.get("context"), row.get("continuations")
    if not isinstance(context, str):
        _own_damaged(place, 'it has no string field "context"')
    if not isinstance(continuations, list) or not continuations or not all(isinstance(c, str) and c for c in continuations):
        _own_damaged(place, 'its field "continuations" is no list of texts')
    if any(map(HALVES.search, (context, *continuations))):
        _own_damaged(place, "it holds half a character (a lone surrogate), which is no text")
    if "gold" not in row:
        _own_damaged(place, 'it has no label: the field "gold" is missing')
    try:
        gold = _gold(row["gold"], len(continuations))
    except ValueError as error:
        _own_damaged(place, str(error))
    answers = (continuations[0].strip(),) if len(continuations) == 1 else ()
    number = place.rpartition(":")[2]
    return Request(number, (context,) * len(continuations), tuple(continuations), gold, str(row.get("domain", "")), answers)


def _own_damaged(place: str, why: str) -> NoReturn:
    raise DataError(f"{place} is no task item: {why}")

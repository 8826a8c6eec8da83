"""The same questions with and without the passage that holds the answer.

What a compressed model has forgotten shows where it must answer from its weights (closed book); what it can still read
shows where the passage stands in the prompt (open book). Both arms hold the same items in the same order under the same
ids, so an arm is compared with the other item by item.

SQuAD (with the title of the article, without which many of its questions mean nothing) and SciQ (items whose passage contains
the answer). One invented example comes before every question: small models know more than they say, and without being shown
that a few words are wanted they begin a sentence. Where calibration text comes from SQuAD passages, look at the domains apart.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from trimtab.data.pack import Request, Row, pack_items, pack_requests


@dataclass(frozen=True)
class Asked:
    """A question, the passage that answers it, and what is offered (only SciQ offers choices)."""

    id: str
    domain: str
    passage: str
    question: str
    answers: tuple[str, ...]
    choices: tuple[str, ...] = ()
    gold: int = 0


EXAMPLE = Asked(
    "", "", "Ten otters live on the river Alne. They eat eels and little else.", "What do the otters of the Alne eat?", ("eels",)
)


def _closed(asked: Asked) -> str:
    return f"Question: {asked.question}\nAnswer:"


def _open(asked: Asked) -> str:
    return f"{asked.passage}\nQuestion: {asked.question}\nAnswer:"


def _shown(wording: Callable[[Asked], str], asked: Asked) -> str:
    return f"{wording(EXAMPLE)} {EXAMPLE.answers[0]}\n\n{wording(asked)}"


def questions() -> list[Asked]:
    """All questions of both collections."""
    return [*_squad(), *_sciq()]


def _squad() -> Iterator[Asked]:
    for request in pack_requests("squad"):
        head, _, passage = request.contexts[0].partition("\nBackground: ")
        passage, _, rest = passage.rpartition("\nQuestion: ")
        topic = head.removeprefix("Title: ").replace("_", " ")
        question = f"{topic}: {rest.removesuffix('Answer:').strip()}"
        yield Asked(f"squad/{request.id}", "squad", passage, question, request.answers)


def _sciq() -> Iterator[Asked]:
    for (_, rows), request in zip(pack_items("sciq"), pack_requests("sciq"), strict=True):
        row: Row = rows[0]["doc"]
        passage, answer = row["support"].strip(), row["correct_answer"]
        if answer.lower() in passage.lower():
            offered = request.continuations, request.gold
            yield Asked(f"sciq/{request.id}", "sciq", passage, row["question"], (answer,), *offered)


def _spoken(wording: Callable[[Asked], str]) -> list[Request]:
    return [Request(a.id, (_shown(wording, a),), (f" {a.answers[0]}",), 0, a.domain, a.answers) for a in questions()]


def _chosen(wording: Callable[[Asked], str]) -> list[Request]:
    return [Request(a.id, (_shown(wording, a),) * len(a.choices), a.choices, a.gold, a.domain) for a in _sciq()]


@dataclass(frozen=True)
class Arm:
    """about: what it asks. requests: its items."""

    about: str
    requests: Callable[[], list[Request]]


ARMS: dict[str, Arm] = {
    "kick:closed": Arm("SQuAD and SciQ from memory, gold answer", lambda: _spoken(_closed)),
    "kick:open": Arm("the same with the passage in the prompt, gold answer", lambda: _spoken(_open)),
    "kick:closed-choice": Arm("SciQ from memory, four choices", lambda: _chosen(_closed)),
    "kick:open-choice": Arm("the same with the passage in the prompt, four choices", lambda: _chosen(_open)),
}

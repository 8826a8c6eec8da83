"""Our items as a task of lm-evaluation-harness, so that its own evaluator can be run on them without a network.

Imports lm_eval; `trimtab.measure.harness` imports this file when it is needed.
"""

from collections.abc import Callable, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean
from lm_eval.api.task import Task
from lm_eval.config.task import TaskConfig

from trimtab.data.pack import Request

Answer = tuple[float, bool]  # log-likelihood in nats, whether greedy decoding says it


class PackTask(Task):
    """A document is one `Request`; lm-eval asks for the log-likelihood of every continuation and takes the likeliest."""

    VERSION = 1
    OUTPUT_TYPE = "multiple_choice"

    def __init__(self, name: str, items: Sequence[Request]):
        self.items = [vars(item) for item in items]  # lm-eval writes documents down as JSON
        self.single = all(len(item.continuations) == 1 for item in items)
        super().__init__()
        self._config = TaskConfig(task=name, num_fewshot=0, output_type=self.OUTPUT_TYPE)

    def download(self, *_: Any, **__: Any) -> None:
        """The items are here already."""

    def has_training_docs(self) -> bool:
        return False

    def has_validation_docs(self) -> bool:
        return False

    def has_test_docs(self) -> bool:
        return True

    def test_docs(self) -> list[dict[str, Any]]:
        return self.items

    def doc_to_text(self, doc: dict[str, Any]) -> str:
        return str(doc["contexts"][0])

    def doc_to_target(self, doc: dict[str, Any]) -> int:
        return int(doc["gold"])

    def fewshot_context(self, doc: dict[str, Any], *_: Any, **__: Any) -> str:
        return self.doc_to_text(doc)

    def construct_requests(self, doc: dict[str, Any], ctx: str, **options: Any) -> list[Instance]:
        pairs = zip(doc["contexts"], doc["continuations"], strict=True)
        return [Instance("loglikelihood", doc, pair, number, options["metadata"]) for number, pair in enumerate(pairs)]

    def process_results(self, doc: dict[str, Any], results: Sequence[Any]) -> dict[str, float]:
        answers: list[Answer] = [tuple(answer) for answer in results]
        if self.single:
            return {"acc": float(answers[0][1])}
        sizes = [len(text.lstrip().encode()) for text in doc["continuations"]]
        per_byte = [nats / size for (nats, _), size in zip(answers, sizes, strict=True)]
        return {
            "acc": float(_largest([nats for nats, _ in answers]) == doc["gold"]),
            "acc_norm": float(_largest(per_byte) == doc["gold"]),
        }

    def aggregation(self) -> dict[str, Callable[[Sequence[float]], float]]:
        return {"acc": mean} if self.single else {"acc": mean, "acc_norm": mean}

    def higher_is_better(self) -> dict[str, bool]:
        return dict.fromkeys(self.aggregation(), True)


def _largest(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)

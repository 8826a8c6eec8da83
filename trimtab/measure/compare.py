"""What did it cost? Models against a base: on the same tokens and the same items, with intervals, item by item.

Every piece that the comparison rests on is kept by content as soon as it is measured (`measure/gather.py`), so a run that
was stopped goes on, a second run has nothing to do, and one more model costs only what is new about it.
Tokens of different tokenizers are not the same observations: such models are refused, unless bits per byte of the same
passages and tasks will do (`across_tokenizers`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trimtab.core.errors import ModelError, UsageError
from trimtab.core.progress import Progress, Watcher, unwatched
from trimtab.core.report import Measurement
from trimtab.host.folder_checks import read_json
from trimtab.host.provenance import provenance
from trimtab.host.source import history
from trimtab.measure import comparison
from trimtab.measure.agreement import Agreement, Predictions
from trimtab.measure.comparison import Evidence
from trimtab.measure.contender import Contender, OpenModels, contenders
from trimtab.measure.gather import Gatherer, agreed, answered, predicted
from trimtab.measure.pieces import Result
from trimtab.measure.setting import Setting
from trimtab.measure.size import file_bytes
from trimtab.measure.tasks import known
from trimtab.measure.wanted import Wanted, obtained
from trimtab.tensors.products import fast_products

RECEIPT = "receipt.json"
Name = tuple[str, ...]  # of a piece: what it is, whose, and of which task
Pieces = Mapping[Name, Result]


@dataclass(frozen=True)
class Comparison:
    """The document, part by part; `ranking`: the models by perplexity, `a < b ≈ c`."""

    setting: dict[str, Any]
    base: dict[str, Any]
    others: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]
    made: dict[str, Any]
    ranking: str

    def json(self) -> dict[str, Any]:
        """The comparison document, format 1."""
        parts = {"setting": self.setting, "base": self.base, "others": list(self.others), "notes": list(self.notes)}
        return {"format": comparison.FORMAT, **parts, "made": self.made}


def compare(base: str, others: Sequence[str], setting: Setting = Setting(), watch: Watcher = unwatched) -> Comparison:
    """Folders, hub names or assets. Raises UsageError, ModelError or DataError, one line, for whatever cannot be compared."""
    for task in setting.tasks:
        known(task)
    watch(Progress("look", 0, 1, base))
    models = contenders([base, *others], watch)
    work = Gatherer(setting, OpenModels(models[0], setting.place()))
    reading: dict[Name, Wanted] = {("text", one.name): work.text(one) for one in models}
    texts = obtained(reading, watch, "text")
    foreign = _foreign(models, texts)
    if foreign and not setting.across_tokenizers:
        raise UsageError(_refusal(models[0], foreign))
    with fast_products():
        found = obtained(_wanted(models, foreign, work, texts), watch, "compare")
    return _assembled(models, foreign, setting, {**texts, **found})


def _foreign(models: Sequence[Contender], texts: Pieces) -> list[Contender]:
    """The models whose tokenizer is not the base's."""
    which = [texts["text", one.name][0] for one in models]
    return [one for one, own in zip(models, which, strict=True) if own != which[0]]


def _refusal(base: Contender, foreign: Sequence[Contender]) -> str:
    return (
        f"{foreign[0].name} and {base.name} have different tokenizers, so perplexity and KL do not compare; "
        "ask for --across-tokenizers to compare bits per byte and tasks"
    )


def _wanted(models: Sequence[Contender], foreign: Sequence[Contender], work: Gatherer, texts: Pieces) -> dict[Name, Wanted]:
    """Model by model, so that each is opened once. The base's predictions come with the first agreement, if there is one."""
    base = models[0]
    alike = [one for one in models[1:] if one not in foreign]
    wanted: dict[Name, Wanted] = {}
    for one in models:
        windows = texts["text", one.name][1]["windows"]
        if one in alike:
            wanted["agreement", one.name] = work.agreement(base, one, windows)
        elif one in foreign or not alike:
            wanted["predictions", one.name] = work.predictions(one, windows)
        for task in work.setting.tasks:
            wanted["items", one.name, task] = work.items(one, task)
        if work.setting.samples:
            wanted["samples", one.name] = work.samples(one)
        if one in foreign or (one is base and foreign):
            wanted["passages", one.name] = work.passages(one)
    return wanted


def _assembled(models: Sequence[Contender], foreign: Sequence[Contender], setting: Setting, found: Pieces) -> Comparison:
    base, *others = models
    agreements = {one.name: agreed(found["agreement", one.name]) for one in others if one not in foreign}
    evidence = {one.name: _evidence(one, *_predicted(one, base, agreements, found), setting, found) for one in models}
    documents = [comparison.model(own) for own in evidence.values()]
    against = [comparison.against(evidence[base.name], evidence[one.name], agreements.get(one.name)) for one in others]
    ranked = [base.name, *agreements]
    return Comparison(
        {**asdict(setting), "interval": 0.95},
        documents[0],
        tuple({**own, "against_base": differences} for own, differences in zip(documents[1:], against, strict=True)),
        tuple(_notes(models, foreign, evidence, agreements)),
        provenance(),
        comparison.ranking(ranked, [evidence[name].predictions.losses for name in ranked]),
    )


def _predicted(
    one: Contender, base: Contender, agreements: Mapping[str, Agreement], found: Pieces
) -> tuple[Predictions, dict[str, Any]]:
    """What a model predicted, and what is said of the model at rest; out of an agreement, or of a pass of its own."""
    if one.name in agreements:
        return agreements[one.name].other, found["agreement", one.name][0]["other"]
    if one is base and agreements:
        first = next(iter(agreements))
        return agreements[first].base, found["agreement", first][0]["base"]
    value, tensors = found["predictions", one.name]
    return predicted(tensors), value


def _evidence(one: Contender, seen: Predictions, at_rest: dict[str, Any], setting: Setting, found: Pieces) -> Evidence:
    passages = found["passages", one.name][1] if ("passages", one.name) in found else None
    return Evidence(
        name=one.name,
        folder=str(one.folder),
        fingerprint=one.fingerprint,
        texts=setting.texts,
        predictions=seen,
        bytes=found["text", one.name][1]["bytes"],
        setting={**setting.on_text(), "dtype": at_rest["dtype"]},
        size=[file_bytes(one.folder), *(Measurement(**measured) for measured in at_rest["size"])],
        items={task: answered(found["items", one.name, task]) for task in setting.tasks},
        samples=found["samples", one.name][0] if setting.samples else [],
        passages=None if passages is None else (passages["nats"], passages["bytes"]),
        receipt=_receipt(one),
    )


def _receipt(one: Contender) -> dict[str, Any] | None:
    """What the folder says about how it was made; a comparison does not fail over it."""
    try:
        return read_json(one.folder / RECEIPT)
    except ModelError:
        return None


def _notes(
    models: Sequence[Contender],
    foreign: Sequence[Contender],
    evidence: Mapping[str, Evidence],
    agreements: Mapping[str, Agreement],
) -> list[str]:
    """What a reader has to know to read the numbers rightly."""
    base = models[0]
    notes = [f"{one.name}: {said}" for one in models if (said := history(one.folder))]
    notes += [f"{one.name} is the same model as {base.name}" for one in models[1:] if one.fingerprint == base.fingerprint]
    notes += [agreement.note for agreement in agreements.values() if agreement.note]
    notes += [
        f"{one.name} has another tokenizer than {base.name}: its perplexity counts other tokens and does not compare; "
        "bits per byte are compared on the same passages"
        for one in foreign
    ]
    cut = [(name, task, items.truncated) for name, own in evidence.items() for task, items in own.items.items()]
    notes += [f"{name}, {task}: {count} contexts were too long and lost their beginning" for name, task, count in cut if count]
    unreadable = [one.name for one in models if (one.folder / RECEIPT).exists() and evidence[one.name].receipt is None]
    return notes + [f"{RECEIPT} of {name} is not readable" for name in unreadable]

"""Federated adaptation: clients train a LoRA each, of a rank of their own, on rows that nobody else sees; changes are stacked.

A round: every client adds the change so far to the model, trains a fresh LoRA beside it, and sends factors and how many rows it
has. In a round all begin at the same right factors, a lower rank at the first rows of them, as where a server sends factors out.
What is not finite or does not fit the model is left out, and the others' shares are those among themselves, so that one client
that fails or goes mad changes nothing else. The next change is the one before and the new ones side by side; its rank grows by
the sum of the clients' ranks, and no product of one client's factor with another's comes in. `host/flower.py` lets Flower carry
it all.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from trimtab.anatomy import Anatomy
from trimtab.core.errors import TrimtabError, UsageError
from trimtab.core.expression import make
from trimtab.core.recipe import Where
from trimtab.core.seeds import Seeds
from trimtab.core.trained import AdapterMethod
from trimtab.data.examples import examples
from trimtab.engine import adapting
from trimtab.formats.deltas import LowRankDelta
from trimtab.host import adapters, checkpoint
from trimtab.host.fingerprint import fingerprint
from trimtab.host.model_assets import resolve_model
from trimtab.host.pretrain import Course
from trimtab.host.trainer import Pace, tune
from trimtab.tensors.federated import Factors, stacked

COURSE = Course(steps=20, batch=4, length=256, learning_rate=1e-3, decay=0.0)
SCALE = 2.0  # alpha / rank, the same for every rank
Change = Mapping[str, Factors]  # by path of the layer
Layers = Mapping[str, tuple[int, int]]  # path -> (out, in)
Joining = Callable[[Sequence[Factors], Sequence[float]], Factors]


@dataclass(frozen=True)
class Client:
    """data: as of `trimtab adapt`, read where the client is."""

    data: str
    rank: int


@dataclass(frozen=True)
class Terms:
    """What is the same for all clients. course: of one client in one round; only, skip: which matrices."""

    model: str
    course: Course = COURSE
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        return checkpoint.local_folder(resolve_model(self.model))


@dataclass(frozen=True, eq=False)
class Upload:
    """rows: how many the client has; its share is in proportion."""

    change: Change
    rows: int


def layers(terms: Terms) -> Layers:
    """Those that every client changes, as the model says and not the clients. Raises as `adapting.attach` does."""
    model, _ = checkpoint.load(terms.folder)
    deltas = adapting.attach(Anatomy.of(model), _lora(1), Where(terms.only, terms.skip), Seeds(0))
    factors = {path: delta.factors() for path, delta in deltas.items() if isinstance(delta, LowRankDelta)}
    return {path: (len(left), right.shape[1]) for path, (left, right) in factors.items()}


def learn(terms: Terms, client: Client, number: int, turn: int, change: Change) -> Upload:
    """What client `number` learns in round `turn` on top of `change`. Raises as `tune` does."""
    model, tokenizer = checkpoint.load(terms.folder)
    if tokenizer is None:
        raise UsageError(f"{terms.model} has no tokenizer; copy the tokenizer files of the original model into it")
    adapting.beside(model, {path: LowRankDelta(*factors) for path, factors in change.items()})
    adapting.merge(Anatomy.of(model))
    seeds = Seeds(terms.course.seed)
    common, seed = (int(torch.randint(2**31, (), generator=seeds.at("client", *of, turn))) for of in ((), (number,)))
    deltas = adapting.attach(Anatomy.of(model), _lora(client.rank), Where(terms.only, terms.skip), Seeds(common))
    rows = examples(client.data, tokenizer, terms.course.length).rows
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    with TemporaryDirectory() as scratch:
        tune(model, trained, rows, replace(terms.course, seed=seed), Path(scratch) / "state", pace=Pace(terms.course.batch))
    found = {path: delta.factors() for path, delta in deltas.items() if isinstance(delta, LowRankDelta)}
    return Upload({path: (SCALE * left.detach(), right.detach()) for path, (left, right) in found.items()}, len(rows))


def joined(wanted: Layers, change: Change, uploads: Mapping[str, Upload], by: Joining = stacked) -> tuple[Change, dict[str, str]]:
    """(the change of before and what the uploads add, why some of them were left out); uploads: by name of the client.

    wanted: as `layers` gives them. by: how changes of one layer become one, `tensors.federated.stacked` or, to compare with,
    `averaged`. Raises `TrimtabError` where no upload can be used.
    """
    refused = {name: why for name, upload in uploads.items() if (why := _unfit(upload, wanted))}
    used = [upload for name, upload in uploads.items() if name not in refused]
    if not used:
        said = "; ".join(f"{name}: {why}" for name, why in refused.items()) or "nobody answered"
        raise TrimtabError(f"no client's change can be used ({said}); the change of before stays")
    shares = [upload.rows / sum(one.rows for one in used) for upload in used]
    new = {path: by([upload.change[path] for upload in used], shares) for path in wanted}
    return ({path: stacked([change[path], new[path]], [1.0, 1.0]) for path in new} if change else new), refused


def write(folder: str | Path, terms: Terms, change: Change, overwrite: bool = False) -> Path:
    """The change as an adapter folder of one LoRA, which peft opens beside the model."""
    rank = next(iter(change.values()))[0].shape[1]
    base = adapters.Base(terms.folder.name, fingerprint(terms.folder))
    deltas = {path: LowRankDelta(*factors) for path, factors in change.items()}
    return adapters.write(folder, deltas, _lora(rank, float(rank)), base, {"federated": True}, overwrite=overwrite)


def _lora(rank: int, alpha: float | None = None) -> AdapterMethod:
    made = make("lora", {"rank": rank, "alpha": SCALE * rank if alpha is None else alpha})
    assert isinstance(made, AdapterMethod)
    return made


def _unfit(upload: Upload, wanted: Layers) -> str:
    """Why an upload is no change of the layers in `wanted`; empty if it is."""
    if upload.rows < 1:
        return f"it says that it has {upload.rows} rows"
    if upload.change.keys() != wanted.keys():
        return "its layers are not those of the model"
    for path, (left, right) in upload.change.items():
        if not _finite(left, right):
            return f"{path} is not finite"
        if left.ndim != 2 or right.ndim != 2 or left.shape[1] != len(right) or (len(left), right.shape[1]) != wanted[path]:
            return f"{path} has factors of {list(left.shape)} and {list(right.shape)}"
    return ""


def _finite(*values: Tensor) -> bool:
    return all(bool(torch.isfinite(value).all()) for value in values)

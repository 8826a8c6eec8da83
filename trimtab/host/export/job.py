"""A model is exported: planned tensor by tensor, refused or written, opened again elsewhere, and only then published."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from trimtab.core.errors import TrimtabError, UsageError, did_you_mean
from trimtab.core.progress import Progress, Watcher, unwatched
from trimtab.core.report import Measurement
from trimtab.engine.basis import write_out_bases
from trimtab.engine.shared import write_out
from trimtab.host.checkpoint import load, local_folder
from trimtab.host.export import reopen
from trimtab.host.export.card import card
from trimtab.host.export.contents import Contents, Entry, check_refused, forget_quantizer, values_of
from trimtab.host.export.targets import Target, target
from trimtab.host.export.under_way import Prepared, UnderWay, entry_of
from trimtab.host.folder_checks import check_links
from trimtab.host.identity import identity_of_export
from trimtab.host.keeping import EVERY, Keeping, holding
from trimtab.host.model_assets import resolve_model
from trimtab.host.publish import check_apart, check_target, publish, recover
from trimtab.host.store import Store


@dataclass(frozen=True)
class Exported:
    """What became of every tensor; folder and measurements are empty where nothing was written."""

    model: str
    to: str
    entries: list[Entry]
    remarks: list[str]
    folder: Path | None = None
    measurements: Sequence[Measurement] = ()

    def json(self) -> dict[str, Any]:
        folder = str(self.folder) if self.folder else None
        return {**asdict(self), "folder": folder, "measurements": [asdict(m) for m in self.measurements]}


def export(
    model: str | Path,
    to: str,
    out: str | Path | None = None,
    *,
    requantize: str | None = None,
    overwrite: bool = False,
    watch: Watcher = unwatched,
    resume: bool = True,
    fresh: bool = False,
    checkpoint_every: float = EVERY,
) -> Exported:
    """Writes a model folder, hub name or asset in the format of another program; without `out` it is only planned.

    to: one of `TARGETS`. requantize: what a matrix may be rounded to that the format cannot hold as it is; without it such a
    model is refused, with the names. Raises `UsageError` before anything is written, `TrimtabError` if the export, opened
    again, does not say what the model says; then nothing is published.
    resume: keep the state of the work in `OUT.partial`, at most every `checkpoint_every` seconds, and go on from what a stopped
    process left there; fresh: forget that first.
    """
    asked = _Asked(model, to, target(to), requantize, watch)
    _check_request(asked)
    if out is None:
        entries, remarks = _planned(asked, _opened(asked, None)[0])
        return Exported(_name(model), to, entries, remarks)
    _check_place(asked, out)
    with holding(out) as folder:
        keeping = Keeping(Store(folder), fresh, checkpoint_every) if resume else None
        finished = keeping is not None and keeping.is_finished(Path(out))
        if finished:
            recover(out)
        else:
            check_target(out, overwrite)
        notes = [] if keeping is None else keeping.begin(_identity(asked))
        done = _again(asked, keeping, out) if keeping and finished else _published(asked, keeping, notes, out, overwrite)
        if keeping is not None:
            keeping.store.clear()
    return done


@dataclass(frozen=True)
class _Asked:
    """A request."""

    model: str | Path
    to: str
    target: Target
    requantize: str | None
    watch: Watcher


def _check_request(asked: _Asked) -> None:
    wanted, known = asked.requantize, asked.target.requantize
    if wanted is not None and not known:
        raise UsageError(f"{asked.to} holds every value as it is; leave --requantize out")
    if wanted is not None and wanted not in known:
        raise UsageError(f"{asked.to} cannot be re-quantized to {wanted!r}{did_you_mean(wanted, known)}")


def _check_place(asked: _Asked, out: str | Path) -> None:
    check_apart(asked.model, out)
    missing = [name.replace("_", "-") for name in asked.target.packages if find_spec(name) is None]
    if missing:
        names = " ".join(missing)
        raise UsageError(f"an export is opened again before it is published, and that needs {names}: pip install {names}")


def _identity(asked: _Asked) -> dict[str, Any]:
    folder = local_folder(resolve_model(str(asked.model)))
    check_links(folder)  # before files are read that lead elsewhere
    return identity_of_export(folder, asked.to, asked.requantize, asked.target.write)


def _published(asked: _Asked, keeping: Keeping | None, notes: list[str], out: str | Path, overwrite: bool) -> Exported:
    work, chosen = UnderWay(keeping), asked.target
    prepared, files = _prepared(asked, work)
    with publish(out, overwrite, sum(entry.bytes for entry in prepared.entries), lambda whole: keep(whole)) as folder:
        asked.watch(Progress("save", 0, 1, str(out)))
        work.write(files, prepared, folder)
        asked.watch(Progress("open again", 0, 1, chosen.opens_with))
        found = _accepted(keeping, lambda: _compared(chosen, folder, prepared))
        done = Exported(_name(asked.model), asked.to, prepared.entries, [*prepared.remarks, *notes], Path(out), found)
        (folder / "README.md").write_text(card(done, chosen), encoding="utf-8")

        def keep(whole: Path) -> None:
            if keeping is not None:
                keeping.published(whole, done.json())

    return done


def _accepted(keeping: Keeping | None, compared: Callable[[], list[Measurement]]) -> list[Measurement]:
    """Files that a reader refuses are not kept: they would be refused again."""
    try:
        return compared()
    except TrimtabError:
        if keeping is not None:
            keeping.store.clear()
        raise


def _again(asked: _Asked, keeping: Keeping, out: str | Path) -> Exported:
    """What was to be said by a process that was stopped when its result was in place."""
    said = keeping.content["report"]
    entries, found = [entry_of(held) for held in said["entries"]], [Measurement(**held) for held in said["measurements"]]
    return Exported(_name(asked.model), asked.to, entries, said["remarks"], Path(out), found)


def _prepared(asked: _Asked, work: UnderWay) -> tuple[Prepared, Callable[[Path], None]]:
    """What there is to write, and who does; nobody has to where the files are kept."""
    if work.prepared is not None:
        return work.prepared, lambda folder: None
    contents, ids, ours = _opened(asked, work)
    contents = replace(contents, keep=work.entry)
    entries, remarks = _planned(asked, contents)
    check_refused(asked.to, entries, tuple(asked.target.requantize))
    told = asked.target.reading(contents)
    return Prepared(ids, ours, entries, remarks, told), partial(asked.target.write, contents, entries)


def _planned(asked: _Asked, contents: Contents) -> tuple[list[Entry], list[str]]:
    asked.watch(Progress("plan", 0, 1, asked.to))
    entries = asked.target.plan(contents, asked.requantize)
    return entries, [*contents.notes, *asked.target.remarks(contents, entries)]


def _opened(asked: _Asked, work: UnderWay | None) -> tuple[Contents, list[list[int]], Any]:
    asked.watch(Progress("load", 0, 1, str(asked.model)))
    opened, tokenizer = load(resolve_model(str(asked.model)), dtype="auto")
    ids = reopen.prompts(tokenizer, opened.config.get_text_config().vocab_size)
    ours = None if work is None else work.logits(lambda: _float_logits(opened, ids))
    forget_quantizer(opened)
    copies = write_out(opened) + write_out_bases(opened)
    notes = [f"{copies} shared matrices were written out, once for each place"] if copies else []
    notes += asked.target.prepare(opened)
    return Contents(opened, tokenizer, asked.target.config(opened), values_of(opened), tuple(notes)), ids, ours


def _float_logits(model: Any, ids: list[list[int]]) -> Any:
    """As in float32, whatever the model's dtype: the readers compute so too."""
    kept = {name: parameter.dtype for name, parameter in model.named_parameters()}
    forget_quantizer(model)
    model.float()
    found = reopen.logits(model, ids)
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(kept[name])
    return found


def _compared(chosen: Target, folder: Path, prepared: Prepared) -> list[Measurement]:
    ids, ours = prepared.ids, prepared.logits
    by_llamacpp = chosen.file is not None and reopen.llama_python() is not None
    if by_llamacpp and chosen.file is not None:
        theirs = reopen.reopen_llamacpp(folder, ids, chosen.file)
    else:
        theirs = reopen.reopen_stock(folder, ids, chosen.file, prepared.told, chosen.reader)
    found = reopen.compare(ours, theirs)
    if all(entry.verdict == "exact" for entry in prepared.entries):
        reopen.check_same(ours, theirs, by_llamacpp)
    return found


def _name(model: str | Path) -> str:
    """Paths of this machine do not go into cards: a folder is named by its last part."""
    return Path(model).name if Path(model).exists() else str(model)

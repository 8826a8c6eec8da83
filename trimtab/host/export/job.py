"""A model is exported: planned tensor by tensor, refused or written, opened again elsewhere, and only then published."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from trimtab.core.errors import UsageError, did_you_mean
from trimtab.core.progress import Progress, Watcher, unwatched
from trimtab.core.report import Measurement
from trimtab.engine.shared import write_out
from trimtab.host.checkpoint import load
from trimtab.host.export import reopen
from trimtab.host.export.card import card
from trimtab.host.export.contents import Contents, Entry, check_refused, forget_quantizer, values_of
from trimtab.host.export.targets import Target, target
from trimtab.host.model_assets import resolve_model
from trimtab.host.publish import check_apart, check_target, publish


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
) -> Exported:
    """Writes a model folder, hub name or asset in the format of another program; without `out` it is only planned.

    to: one of `TARGETS`. requantize: what a matrix may be rounded to that the format cannot hold as it is; without it such a
    model is refused, with the names. Raises `UsageError` before anything is written, `TrimtabError` if the export, opened
    again, does not say what the model says; then nothing is published.
    """
    chosen = target(to)
    _check_request(chosen, model, to, requantize, out, overwrite)
    watch(Progress("load", 0, 1, str(model)))
    contents, ids, ours = _opened(model, chosen, out is not None)
    watch(Progress("plan", 0, 1, to))
    entries = chosen.plan(contents, requantize)
    planned = Exported(_name(model), to, entries, [*contents.notes, *chosen.remarks(contents, entries)])
    if out is None:
        return planned
    check_refused(to, entries, tuple(chosen.requantize))
    with publish(out, overwrite, sum(entry.bytes for entry in entries)) as partial:
        watch(Progress("save", 0, 1, str(out)))
        told = chosen.reading(contents)
        chosen.write(contents, entries, partial)
        watch(Progress("open again", 0, 1, chosen.opens_with))
        found = _compared(chosen, partial, ids, ours, entries, told)
        done = Exported(planned.model, to, entries, planned.remarks, Path(out), found)
        (partial / "README.md").write_text(card(done, chosen), encoding="utf-8")
    return done


def _check_request(
    chosen: Target, model: str | Path, to: str, requantize: str | None, out: str | Path | None, overwrite: bool
) -> None:
    if requantize is not None and not chosen.requantize:
        raise UsageError(f"{to} holds every value as it is; leave --requantize out")
    if requantize is not None and requantize not in chosen.requantize:
        raise UsageError(f"{to} cannot be re-quantized to {requantize!r}{did_you_mean(requantize, chosen.requantize)}")
    if out is None:
        return
    check_target(out, overwrite)
    check_apart(model, out)
    missing = [name.replace("_", "-") for name in chosen.packages if find_spec(name) is None]
    if missing:
        names = " ".join(missing)
        raise UsageError(f"an export is opened again before it is published, and that needs {names}: pip install {names}")


def _opened(model: str | Path, chosen: Target, to_compare: bool) -> tuple[Contents, list[list[int]], Any]:
    opened, tokenizer = load(resolve_model(str(model)), dtype="auto")
    ids = reopen.prompts(tokenizer, opened.config.get_text_config().vocab_size)
    ours = _float_logits(opened, ids) if to_compare else None
    forget_quantizer(opened)
    copies = write_out(opened)
    notes = [f"{copies} shared matrices were written out, once for each place"] if copies else []
    notes += chosen.prepare(opened)
    return Contents(opened, tokenizer, chosen.config(opened), values_of(opened), tuple(notes)), ids, ours


def _float_logits(model: Any, ids: list[list[int]]) -> Any:
    """As in float32, whatever the model's dtype: the readers compute so too."""
    kept = {name: parameter.dtype for name, parameter in model.named_parameters()}
    forget_quantizer(model)
    model.float()
    found = reopen.logits(model, ids)
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(kept[name])
    return found


def _compared(
    chosen: Target, folder: Path, ids: list[list[int]], ours: Any, entries: list[Entry], told: dict[str, Any]
) -> list[Measurement]:
    by_llamacpp = chosen.file is not None and reopen.llama_python() is not None
    if by_llamacpp and chosen.file is not None:
        theirs = reopen.reopen_llamacpp(folder, ids, chosen.file)
    else:
        theirs = reopen.reopen_stock(folder, ids, chosen.file, told, chosen.reader)
    found = reopen.compare(ours, theirs)
    if all(entry.verdict == "exact" for entry in entries):
        reopen.check_same(ours, theirs, by_llamacpp)
    return found


def _name(model: str | Path) -> str:
    """Paths of this machine do not go into cards: a folder is named by its last part."""
    return Path(model).name if Path(model).exists() else str(model)

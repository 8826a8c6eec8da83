"""Everything that one page knows: its places, its one job, who speaks, and which methods there are."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trimtab.core.errors import TrimtabError, UsageError
from trimtab.report.document import Document
from trimtab.report.folders import bases, receipt_of
from trimtab.ui import form, shelf
from trimtab.ui.jobs import COMMAND, Bench, Job
from trimtab.ui.places import Places
from trimtab.ui.shelf import Shelf
from trimtab.ui.talk import SPEAKER, Stage

STEPS = ("linear", "channel", "model", "scale")  # the kinds of methods that are a step of their own
ASSETS = ("asset:smollm2-135m",)  # offered where nothing else is known; others would be trained first
PLANNED = ("--json", "--progress=json")


class Desk:
    """root: resolved; base: a model outside of it that may be used too; command, speaker: what is run for it."""

    def __init__(self, root: Path, base: str = "", command: Sequence[str] = COMMAND, speaker: Sequence[str] = SPEAKER):
        self.places, self.command = Places(root, base), command
        self.bench, self.stage = Bench(root, command), Stage(root, speaker)
        self.known: dict[str, dict[str, Any]] | None = None
        self.reading = asyncio.Lock()

    async def close(self) -> None:
        await asyncio.gather(self.bench.close(), self.stage.close())

    # --- looking --------------------------------------------------------------------------------------------------------

    def look(self, folder: str, comparison: str | None) -> tuple[Shelf, Path | None, Document | None]:
        """A folder, the comparison that is shown (the newest, unless one is named), and what there is to say."""
        found = Shelf.of(self.places.folder(folder))
        named = [path for path in found.comparisons if path.name == comparison]
        if comparison and not named:
            raise UsageError(f"there is no comparison {comparison:.200} in {found.folder}")
        chosen = next(iter(named or found.comparisons), None)
        return found, chosen, shelf.shown(self.places, found, chosen)

    def one(self, at: str) -> tuple[Shelf, Path, Document]:
        """A result, with the folder that it lies in."""
        path = self.places.folder(at)
        above = path.parent if path.parent.is_relative_to(self.places.root) else path
        found, _, whole = self.look(self.places.name(above), None)
        if path not in found.results or whole is None:
            raise UsageError(f"{at:.200} holds neither weights nor a receipt.json")
        return found, path, whole

    def base(self, found: Shelf) -> str:
        """What the results of a folder were made from, if it is one model; else what was named at the start."""
        named = shelf.started_from(found)
        return named[0] if len(named) == 1 else self.places.base or (named[0] if named else "")

    def pair(self, folder: str, at: str, base: str) -> tuple[Path, str, str]:
        """Folder, base and result to listen to; the newest result, if none is named."""
        found = Shelf.of(self.places.folder(folder)) if not at else self.one(at)[0]
        chosen = self.places.folder(at) if at else next(iter(found.results), None)
        named = base or (shelf.base_of(None, chosen) if chosen else "") or self.base(found)
        return found.folder, named, (self.places.name(chosen) or ".") if chosen else ""

    def models(self, folder: Path, originals: bool = False) -> list[tuple[str, str]]:
        """(what to show, the word for it) of every model that can be opened from here. originals: not those we made."""
        found = Shelf.of(folder)
        here = [path for path in found.results if not (originals and (path / "receipt.json").is_file())]
        made_from = bases(receipt_of(path) for path in found.results)
        own = [(path.name, self.places.name(path) or ".") for path in here]
        others = [name for name in (self.places.base, *made_from, *ASSETS) if name and self._is_allowed(name)]
        return [*own, *((name, name) for name in dict.fromkeys(others))]

    def _is_allowed(self, name: str) -> bool:
        try:
            self.places.model(name)
        except UsageError:
            return False
        return True

    # --- work -----------------------------------------------------------------------------------------------------------

    async def plan(self, asked: form.Asked) -> Job:
        """Looks only. What it looked at is what `compress` carries out."""
        words = form.words(asked, self.places, await self.methods() if asked.way == "method" else {})
        out = self.places.target(asked.folder, asked.name)
        facts = {"folder": asked.folder, "name": asked.name, "compress": ["compress", *words, f"--output-dir={out}"]}
        return await self.bench.start("plan", "the plan", ["plan", *words, *PLANNED], _planned, **facts)

    async def compress(self, number: int) -> Job:
        """Carries out the plan with this number. Raises `UsageError` if it is not the one that was made last."""
        job = self.bench.job
        if job is None or job.kind != "plan" or job.number != number or job.state != "done":
            raise UsageError("there is no such plan any more; look at the plan again, then start")
        facts = {name: job.facts[name] for name in ("folder", "name")}
        self.places.target(facts["folder"], facts["name"])  # it may have appeared meanwhile
        words = [*job.facts["compress"], *PLANNED]
        return await self.bench.start("compress", facts["name"], words, _compressed, **facts)

    async def measure(self, folder: str, base: str, tasks: str, limit: int, speed: bool) -> Job:
        """Compares every result of a folder with its base; writes `comparison.json` there."""
        found, model = Shelf.of(self.places.folder(folder)), self.places.model(base)
        named = [str(path) for path in found.results if str(path) != model]  # which may lie beside its results
        if not named:
            raise UsageError("there is nothing in this folder to measure")
        target = self._comparison(found.folder)
        words = ["report", *named, f"--base={model}", f"--limit={limit}", *PLANNED]
        words += [f"--tasks={tasks}"] if tasks else []
        words += [] if speed else ["--no-speed"]
        return await self.bench.start("measure", found.folder.name, words, lambda job: _measured(job, target), folder=folder)

    def _comparison(self, folder: Path) -> Path:
        """Where a comparison goes. Raises `UsageError` if something else has that name."""
        target = folder / shelf.COMPARISON
        if (target.exists() or target.is_symlink()) and target not in Shelf.of(folder).comparisons:
            raise UsageError(f"{target} exists and is no comparison, so it will not be replaced; move it away")
        return target

    async def methods(self) -> dict[str, dict[str, Any]]:
        """Those that are a step of their own, by id, with their knobs; asked of the command line once."""
        async with self.reading:
            if self.known is None:
                self.known = {entry["id"]: entry for entry in await _listed(self.command) if entry["kind"] in STEPS}
        return self.known


async def _listed(command: Sequence[str]) -> Sequence[dict[str, Any]]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, "methods", "--json", stdout=pipe, stderr=pipe)
    printed, said = await process.communicate()
    if process.returncode:
        raise TrimtabError(f"the methods could not be listed: {said.decode(errors='replace').strip()[-300:]}")
    found: list[dict[str, Any]] = json.loads(printed)
    return found


def _planned(job: Job) -> None:
    """The steps, without the names of hundreds of matrices."""
    steps = [{**step, "sites": len(step["sites"])} for step in job.result["steps"]]
    job.result = {**job.result, "steps": steps}


def _compressed(job: Job) -> None:
    job.result = {name: job.result.get(name) for name in ("bytes_before", "bytes_after")}


def _measured(job: Job, target: Path) -> None:
    """Replaced in one step, as every result."""
    fields = shelf.checked(job.result["comparison"])
    partial = target.with_name(f".{target.name}.partial")
    partial.write_text(json.dumps(fields, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(target)
    job.result = {"comparison": target.name}

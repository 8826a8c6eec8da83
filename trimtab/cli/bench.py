"""`trimtab bench`: how fast a model answers here, and how near that is to what the memory allows."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.cli import show
from trimtab.cli.manners import complain
from trimtab.cli.options import Json, Model, Quiet, Verbose
from trimtab.cli.progress import working
from trimtab.core.errors import TrimtabError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trimtab.core.progress import Watcher
    from trimtab.measure.bench import Timed

GATED = 4096  # tokens, at most: the share of 1024 would be known to 0.3 points only
CONTEXT = 2048  # where a model does not say how much it can read


def register(app: typer.Typer) -> None:
    app.command("bench")(bench)


def bench(
    model: Model,
    threads: Annotated[str, typer.Option(help="Comma-separated: 1,2. (default: 1, 2, 4 ... all cores)")] = "",
    prefill: Annotated[int, typer.Option(min=1, help="Tokens that are read at once.")] = 512,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens that are decoded after a prompt of 16.")] = 64,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds, of which the median counts.")] = 5,
    head_bits: Annotated[int | None, typer.Option(help="Of the head: 4, 8, 16 or 32. (default: 16 where it is plain)")] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Prefill and decode speed per number of threads, beside the speed of plain reading. Nothing is shown of wrong answers."""
    counts = _counts(threads)
    with working(quiet, verbose) as watch:
        from trimtab.cli.voice import folder_of
        from trimtab.runtime import Unsupported

        folder = folder_of(model)
        asked = {"prefill": prefill, "new_tokens": new_tokens, "repeats": repeats}
        try:
            found = _native(folder, counts, head_bits, asked, watch)
        except Unsupported as error:
            complain(f"{error}; transformers' generate is timed instead", "note: ")
            found = {"engine": "torch", "why": str(error), **_torch(folder, counts, asked, watch)}
    if json:
        gate = {"gate": asdict(found["gate"])} if "gate" in found else {}
        show.as_json({"model": model, **found, **gate, "threads": [asdict(timed) for timed in found["threads"]]})
    else:
        _show(model, found)


def _counts(threads: str) -> list[int]:
    cores = os.cpu_count() or 1
    if not threads:
        doubled = [2**power for power in range(cores.bit_length()) if 2**power < cores]
        return [*doubled, cores]
    try:
        counts = [int(count) for count in threads.split(",")]
    except ValueError as error:
        raise UsageError(f"--threads are whole numbers with commas between them, got {threads!r}") from error
    for count in counts:
        if not 1 <= count <= cores:
            raise UsageError(f"--threads must be 1 to {cores}, the cores of this machine; got {count}")
    return counts


def _native(
    folder: Path, counts: "Sequence[int]", head_bits: int | None, asked: dict[str, int], watch: "Watcher"
) -> dict[str, Any]:
    """Raises `Unsupported`; `TrimtabError` where the answers are not those of torch."""
    from trimtab.core.progress import Progress
    from trimtab.host.checkpoint import load
    from trimtab.measure.bench import gate, time_native, words
    from trimtab.runtime import Runtime

    # With the head that it has by itself: codes for it are the user's wish, and not what the gate is about.
    runtime = Runtime.open(folder, threads=max(counts))
    ids = words(folder, min(GATED, runtime.context), runtime.vocabulary)
    watch(Progress("gate", 0, 1))
    judged = gate(runtime, load(folder)[0], ids)
    if judged.red:
        raise TrimtabError(
            f"{judged.red}: its speed means nothing; please report this model, and use `trimtab generate --engine torch`"
        )
    fitting = _fitting(asked, runtime.context)
    timed = []
    for count in counts:
        opened = Runtime.open(folder, threads=count, head_bits=head_bits)
        timed.append(time_native(opened, ids, **fitting, watch=watch))
    facts = {"kernel": opened.kernel, "bytes_per_token": opened.bytes_per_token, "head_bits": opened.head_bits}
    return {"engine": "native", **facts, "gate": judged, **fitting, "threads": timed}


def _torch(folder: Path, counts: "Sequence[int]", asked: dict[str, int], watch: "Watcher") -> dict[str, Any]:
    from trimtab.core.progress import Progress
    from trimtab.host.checkpoint import load
    from trimtab.measure.bench import time_torch, words
    from trimtab.tensors.products import fast_products

    model = load(folder)[0]
    config = model.config.get_text_config()
    fitting = _fitting(asked, getattr(config, "max_position_embeddings", None) or CONTEXT)
    ids = words(folder, GATED, config.vocab_size)
    timed = []
    with fast_products():
        for number, count in enumerate(counts):
            watch(Progress("bench", number, len(counts), f"{count} threads"))
            timed.append(time_torch(model, ids, count, **fitting))
    return {**fitting, "threads": timed}


def _fitting(asked: dict[str, int], context: int) -> dict[str, int]:
    """What was asked for, as far as the model's context allows."""
    from trimtab.measure.bench import PROMPT

    new_tokens = min(asked["new_tokens"], max(1, context - PROMPT - 1))
    return {**asked, "prefill": min(asked["prefill"], context), "new_tokens": new_tokens}


def _show(model: str, found: dict[str, Any]) -> None:
    if found["engine"] == "native":
        typer.echo(f"{model}: {found['kernel']}, {show.size(found['bytes_per_token'])} of weights per token")
        typer.echo(f"gate: {found['gate']}")
    else:
        typer.echo(f"{model}: transformers' generate; the native runtime does not cover it: {found['why']}")
    columns = ("threads", "prefill tokens/s", "decode tokens/s", "decode GB/s", "reading GB/s", "share")
    table = [_row(timed, found.get("bytes_per_token")) for timed in found["threads"]]
    show.table(columns, table, right=range(len(columns)))
    stages = {f"{timed.threads} threads": timed.stages for timed in found["threads"] if timed.stages}
    if stages:
        typer.echo("")
        rows = _stage_rows(list(stages.values()))
        show.table(("milliseconds of a decoded token", *stages), rows, right=range(1, len(stages) + 1))


def _row(timed: "Timed", bytes_per_token: int | None) -> list[str]:
    row = [str(timed.threads), show.cell(timed.prefill), show.cell(timed.decode)]
    if timed.read is None or timed.share is None or bytes_per_token is None:
        return [*row, "-", "-", "-"]
    return [*row, f"{timed.decode.value * bytes_per_token / 1e9:.2f}", f"{timed.read.value / 1e9:.2f}", f"{timed.share:.0%}"]


def _stage_rows(stages: "Sequence[dict[str, float]]") -> list[list[str]]:
    """A row per stage with the share of the token's time, and one for all of them."""
    wholes = [sum(seconds.values()) for seconds in stages]
    rows = [
        [name, *(f"{each[name] * 1e3:.3f} ({each[name] / whole:.0%})" for each, whole in zip(stages, wholes, strict=True))]
        for name in stages[0]
    ]
    return [*rows, ["together", *(f"{whole * 1e3:.3f}" for whole in wholes)]]

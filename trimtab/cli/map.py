"""`trimtab map`: what a model would cost on a described accelerator, and for which lengths to compile it. Nothing is measured."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.cli import show
from trimtab.cli.options import Json, Model, Quiet, Verbose
from trimtab.cli.progress import working
from trimtab.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trimtab.core.accelerator import Accelerator
    from trimtab.core.mapping import Block, Product
    from trimtab.core.progress import Watcher

FINEST = 64  # lengths between which buckets are chosen


def register(app: typer.Typer) -> None:
    app.command("map")(map_)


def map_(
    model: Model,
    accelerator: Annotated[Path | None, typer.Option(help="JSON file that describes it. (default: a U280)")] = None,
    contexts: Annotated[str, typer.Option(help="Comma-separated: tokens that a decoded one attends to.")] = "128,1024",
    longest: Annotated[int, typer.Option(min=2, help="Tokens of the longest prompt.")] = 1024,
    buckets: Annotated[int, typer.Option(min=1, help="For how many lengths of prompts to compile.")] = 6,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Plan a model for an accelerator: tokens a second, joules, lengths to compile for. Simulated, not measured."""
    attended = _contexts(contexts)
    with working(quiet, verbose) as watch:
        from trimtab.core.accelerator import U280, read_accelerator

        device = U280 if accelerator is None else read_accelerator(accelerator)
        blocks, head = _blocks(model, watch)
    found = {
        "model": model,
        "accelerator": asdict(device),
        "simulated": True,
        "decode": [_decoding(blocks, head, device, context) for context in attended],
        "compiled": _compiled(blocks, head, device, longest, buckets),
    }
    if json:
        show.as_json(found)
    else:
        _tell(found, device)


def _contexts(words: str) -> list[int]:
    if not all(word.strip().isdecimal() and int(word) for word in words.split(",")):
        raise UsageError(f"--contexts are whole numbers above 0 with commas between them, got {words!r}")
    return [int(word) for word in words.split(",")]


def _blocks(model: str, watch: "Watcher") -> "tuple[list[Block], Product]":
    from trimtab.anatomy import Anatomy
    from trimtab.core.progress import Progress
    from trimtab.formats.mapped import mapped, products
    from trimtab.host.opening import load

    watch(Progress("load", 0, 1, model))
    opened, _ = load(model)
    anatomy = Anatomy.of(opened)
    width, blocks = anatomy.sites[0].shape[1], []
    for block in range(len(anatomy.blocks)):
        norms = sum(any(site.block == block for site in norm.feeds) for norm in anatomy.norms())
        blocks.append(mapped({site: anatomy.weight(site) for site in anatomy.block_sites(block)}, norms, width))
    (head, *_) = products("head", anatomy.weight(anatomy.sites[-1]))
    return blocks, head


def _decoding(blocks: "Sequence[Block]", head: "Product", device: "Accelerator", context: int) -> dict[str, Any]:
    """One token, fused and not, and how much of its time is what no scheduling can save."""
    from trimtab.core.mapping import model_cost

    fused, apart = (model_cost(blocks, head, device, 1, context, how) for how in (True, False))
    per_second = 1 / fused.seconds
    return {
        "context": context,
        "tokens_per_second": per_second,
        "unfused_tokens_per_second": 1 / apart.seconds,
        "tokens_per_joule": 1 / fused.joules,
        "tokens_per_second_and_price": per_second / device.price if device.price else None,
        "bytes": fused.bytes,
        "least_time": fused.bound / fused.seconds,
    }


def _compiled(blocks: "Sequence[Block]", head: "Product", device: "Accelerator", longest: int, most: int) -> dict[str, Any]:
    """The lengths of prompts to compile for, and what padding to them costs if all lengths are as likely."""
    from functools import cache

    from trimtab.core.mapping import buckets, model_cost, padded

    lengths = [round(longest * step / FINEST) for step in range(1, FINEST + 1)] if longest > FINEST else [*range(1, longest + 1)]
    seconds: Callable[[int], float] = cache(lambda length: model_cost(blocks, head, device, length, length, True).seconds)
    chosen = buckets(lengths, seconds, most)
    exact = sum(map(seconds, lengths))
    return {
        "lengths": longest,
        "buckets": [{"tokens": length, "seconds": seconds(length)} for length in chosen],
        "padding": padded(lengths, chosen, seconds) / exact - 1,
        "one_bucket": seconds(longest) * len(lengths) / exact - 1,
    }


def _tell(found: dict[str, Any], device: "Accelerator") -> None:
    typer.echo(f"{found['model']} on {device.name}: simulated, not measured")
    rows = [
        (
            str(one["context"]),
            f"{one['tokens_per_second']:.1f}",
            f"{one['unfused_tokens_per_second']:.1f}",
            f"{one['tokens_per_joule']:.2f}",
            f"{one['least_time']:.0%}",
        )
        for one in found["decode"]
    ]
    names = ("context", "tokens/s", "unfused", "tokens/J", "least possible")
    show.table(names, rows, title="decoding", right=range(5), wrap=())
    compiled = found["compiled"]
    rows = [(str(one["tokens"]), f"{one['seconds'] * 1e3:.2f}") for one in compiled["buckets"]]
    show.table(("prompts up to", "ms"), rows, title="compiled for", right=range(2), wrap=())
    typer.echo(
        f"padding to the next of {len(rows)} lengths costs {compiled['padding']:.0%} of the time, "
        f"with one length for all {compiled['one_bucket']:.0%}"
    )

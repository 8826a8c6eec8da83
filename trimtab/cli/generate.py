"""`trimtab generate`: a look at what a model says."""

from typing import Annotated

import typer

from trimtab.cli import show
from trimtab.cli.measure import open_with_tokenizer
from trimtab.cli.options import Device, Dtype, Json, Model, Quiet, Verbose, device_of, dtype_of
from trimtab.cli.progress import working


def register(app: typer.Typer) -> None:
    app.command("generate")(generate)


def generate(
    model: Model,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to continue.", show_default=False)],
    new_tokens: Annotated[int, typer.Option(min=1, help="At most so many tokens.")] = 64,
    seed: Annotated[int | None, typer.Option(help="Sample with this seed. (default: greedy)")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Put the prompt into the chat template.")] = False,
    dtype: Dtype = None,
    device: Device = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Continue a prompt: greedily, or sampled from the model's own distribution with --seed."""
    with working(quiet, verbose) as watch:
        from trimtab.core.progress import Progress
        from trimtab.measure.text import generate as run
        from trimtab.tensors.products import fast_products

        watch(Progress("load", 0, 1, model))
        opened, tokenizer = open_with_tokenizer(model, {"device": device_of(device), "dtype": dtype_of(dtype)})
        watch(Progress("generate", 0, 1))
        with fast_products():
            said = run(opened, tokenizer, prompt, new_tokens, seed, chat)
    if json:
        show.as_json({"model": model, "prompt": prompt, "text": said, "new_tokens": new_tokens, "seed": seed, "chat": chat})
    else:
        typer.echo(said)

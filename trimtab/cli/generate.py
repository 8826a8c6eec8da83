"""`trimtab generate`: a look at what a model says, as it says it."""

import os
import sys
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from trimtab.cli import complete, show
from trimtab.cli.options import Device, Dtype, Json, KvBits, Memory, Model, Quiet, Threads, Verbose
from trimtab.cli.progress import working
from trimtab.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trimtab.cli.voice import Voice
    from trimtab.runtime import Sampling

Engine = Annotated[
    str, typer.Option(help="native, torch, or auto: native where it covers the model.", autocompletion=complete.engine)
]
Seed = Annotated[int | None, typer.Option(help="Sample with this seed. (default: greedy)")]
Temperature = Annotated[float | None, typer.Option(min=0, help="Sample; below 1 the likely become likelier. (default: greedy)")]
TopK = Annotated[int | None, typer.Option(min=0, help="Sample among so many likeliest tokens; 0: all.")]
TopP = Annotated[float | None, typer.Option(help="Sample among the likeliest tokens that have this probability together.")]
Penalty = Annotated[float | None, typer.Option(help="Against repetition, above 1. (default: what the model's files say)")]


def register(app: typer.Typer) -> None:
    app.command("generate")(generate)


def generate(
    model: Model,
    prompt: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="What to continue; several together.")],
    new_tokens: Annotated[int, typer.Option(min=1, help="At most so many tokens.")] = 64,
    seed: Seed = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    repetition_penalty: Penalty = None,
    chat: Annotated[bool, typer.Option("--chat", help="Put the prompt into the chat template.")] = False,
    engine: Engine = "auto",
    threads: Threads = None,
    kv_bits: KvBits = 16,
    dtype: Dtype = None,
    device: Device = None,
    memory: Memory = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Continue prompts: greedily, or sampled from the model's own distribution with --seed or --temperature.

    Of several prompts each is continued as if it were alone; with --seed S the first draws with S, the second with S + 1.
    """
    page = sys.stdout  # `working` keeps it for results
    with working(quiet, verbose) as watch:
        from trimtab.cli.voice import open_voice
        from trimtab.core.progress import Progress
        from trimtab.runtime.batch import seeded

        watch(Progress("load", 0, 1, model))
        voice = open_voice(model, engine, threads, dtype, device, memory, kv_bits)
        sampling = sampling_of(seed, temperature, top_k, top_p, repetition_penalty, voice)
        ids = [asked(voice, each, chat) for each in prompt]
    # No bars from here on: they would be drawn over the text.
    with working(quiet=True, verbose=verbose):
        if len(prompt) == 1:
            said = [list[int]()]
            speak(voice, ids[0], new_tokens, sampling, None if json else page, said[0])
        else:
            said = voice.say_together(ids, new_tokens, seeded(sampling, len(ids)))
    texts = [voice.decode(each) for each in said]
    if json:
        facts = {"new_tokens": new_tokens, "seed": seed, "chat": chat, "engine": voice.engine}
        answer = {"prompt": prompt[0], "text": texts[0]} if len(prompt) == 1 else {"prompts": prompt, "texts": texts}
        show.as_json({"model": model, **answer, **facts})
    elif len(prompt) > 1:
        parts = enumerate(zip(prompt, texts, strict=True), 1)
        write(page, "\n".join(f"[{number}] {each}\n{text}\n" for number, (each, text) in parts))


def asked(voice: "Voice", prompt: str, chat: bool) -> list[int]:
    """Raises `UsageError` where there is nothing to continue."""
    text = voice.conversation([{"role": "user", "content": prompt}]) if chat else prompt
    ids = voice.encode(text, special=not chat)  # a template writes its special tokens itself
    if not ids:
        raise UsageError("the prompt is empty; give at least one word")
    return ids


def sampling_of(
    seed: int | None, temperature: float | None, top_k: int | None, top_p: float | None, penalty: float | None, voice: "Voice"
) -> "Sampling":
    """Greedy where nothing is asked for; else from the model's own distribution, changed as asked. Without a seed it is 0."""
    from trimtab.runtime import Sampling

    penalty = voice.penalty if penalty is None else penalty
    if top_p is not None and not 0 < top_p <= 1:
        raise UsageError(f"--top-p must be above 0 and at most 1, got {top_p:g}")
    if not penalty > 0:
        raise UsageError(f"--repetition-penalty must be above 0, got {penalty:g}")
    greedy = temperature == 0 or all(value is None for value in (seed, temperature, top_k, top_p))
    if greedy:
        return Sampling(repetition_penalty=penalty)
    return Sampling(
        temperature=1.0 if temperature is None else temperature,
        top_k=top_k or 0,
        top_p=1.0 if top_p is None else top_p,
        repetition_penalty=penalty,
        seed=seed or 0,
    )


def speak(
    voice: "Voice", ids: "Sequence[int]", new_tokens: int, sampling: "Sampling", page: TextIO | None, said: list[int]
) -> None:
    """Appends the new ids to `said`. Their text is written to `page` as they are made; a line end after it, whatever happens."""
    from trimtab.runtime.text import Stream

    stream = Stream(voice.decode)

    def hear(id: int) -> None:
        said.append(id)
        write(page, stream.push(id))

    try:
        voice.say(ids, new_tokens, sampling, hear)
        write(page, stream.end())
    finally:
        write(page, "\n")


def write(page: TextIO | None, text: str) -> None:
    """At once. Where the reader has gone, as in `trimtab generate ... | head`, the program ends without a word."""
    if page is None or not text:
        return
    try:
        page.write(text)
        page.flush()
    except BrokenPipeError:
        # What is still in the buffer cannot be written either, and the interpreter would complain about that at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), page.fileno())
        raise typer.Exit from None

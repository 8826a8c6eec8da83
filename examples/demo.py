"""The whole story on a real model: compress SmolLM2-135M to 3 bits per weight, and show what that cost.

Run by `make demo`. Prints a table (size, bits, perplexity with its standard error, bits per byte, speed) and what the model
says before and after. The result is an ordinary Hugging Face folder, out/smollm2-135m-3bit.
"""

import argparse
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import trimtab
from trimtab.cli.progress import working
from trimtab.core.recipe import Calibration, Recipe
from trimtab.core.report import Measurement
from trimtab.host.model_assets import resolve_model
from trimtab.measure import measure
from trimtab.measure.size import file_bytes
from trimtab.measure.text import generate
from trimtab.tensors.products import fast_products

MODEL = "asset:smollm2-135m"
PROMPTS = ("The capital of France is", "Photosynthesis is the process by which plants")
ROWS = ("file size", "bits per weight, blocks", "bits per weight, all", "perplexity", "bits per byte", "prefill", "decode")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--do", default="gptq(bits=3, clip=True)", help="what to do, as a recipe expression")
    options.add_argument("--tokens", type=int, default=32768, help="calibration tokens")
    options.add_argument("--out", type=Path, default=Path("out/smollm2-135m-3bit"))
    given = options.parse_args()
    console, begun = Console(), time.perf_counter()

    console.print(f"[bold]1. The model as it came[/bold]: {MODEL}")
    before, said_before = examine(resolve_model(MODEL))

    console.print(f"[bold]2. Compressing[/bold]: {given.do}, shown {given.tokens} tokens of other text")
    recipe = Recipe.of(given.do, Calibration(tokens=given.tokens))
    with working(quiet=False, verbose=False) as watch:
        done = trimtab.compress(MODEL, recipe, given.out, overwrite=True, dtype=torch.float16, watch=watch)
    console.print(done.report.markdown(), markup=False)

    console.print("[bold]3. The model as it is now[/bold]")
    after, said_after = examine(str(given.out))

    console.print(comparison(before, after))
    for prompt, was, now in zip(PROMPTS, said_before, said_after, strict=True):
        console.print(f"\n[bold]{prompt}[/bold]\n[dim]before:[/dim] {was}\n[dim]after: [/dim] {now}", highlight=False)
    console.print(
        f"\nWritten to {given.out}; {time.perf_counter() - begun:.0f} s in all. Open it with transformers after `import trimtab`."
    )


def examine(folder: str) -> tuple[dict[str, Measurement], list[str]]:
    """Measurements by name, and what the model says to each prompt (greedy)."""
    model, tokenizer = trimtab.load(folder)
    with fast_products():
        found = [file_bytes(Path(folder)), *measure(model, tokenizer)]
        said = [generate(model, tokenizer, prompt, new_tokens=32) for prompt in PROMPTS]
    return {m.name: m for m in found}, said


def comparison(before: dict[str, Measurement], after: dict[str, Measurement]) -> Table:
    table = Table(title="What it cost", caption="perplexity and bits per byte: BoolQ passages, 24 windows of 512 tokens")
    for column in ("", "before", "after"):
        table.add_column(column, justify="right" if column else "left")
    for row in ROWS:
        name = next((n for n in before if n.startswith(row)), None)
        if name is not None:
            table.add_row(f"{name}, {before[name].unit}", cell(before[name]), cell(after[name]))
    return table


def cell(m: Measurement) -> str:
    value = f"{m.value / 1e6:.1f} M" if m.unit == "bytes" else f"{m.value:.4g}"
    return value + (f" ± {m.stderr:.2g}" if m.stderr > 0 else "")


if __name__ == "__main__":
    main()

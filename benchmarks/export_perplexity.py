"""Perplexity of exported GGUF files by llama.cpp, against the same models here, on the same tokens.

    python benchmarks/export_perplexity.py --llama-python ENV/bin/python [--windows 16] [--length 257]

SmolLM2-135M with `rtn` in groups of 32, symmetric. Three files: the 4-bit model as Q4_0 and written as F32, the 8-bit model as
Q8_0. The F32 file has no rounding of llama.cpp's own but float16 keys and values, so it shows whether the graph is the same; the
block formats are multiplied with activations rounded to 8 bits. Whether that is all of the difference, one more column shows:
ours, where everything that enters a packed matrix is first rounded as llama.cpp does (blocks of 32, the step a float16).
"""

import argparse
import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

MODEL, TEXT, SEED = "asset:smollm2-135m", "asset:boolq", 0
FILES = (("F32", 4, True), ("Q4_0", 4, False), ("Q8_0", 8, False))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--llama-python", required=True, help="an interpreter that has llama-cpp-python")
    options.add_argument("--windows", type=int, default=16)
    options.add_argument("--length", type=int, default=257, help="tokens of a window; the first is not scored")
    options.add_argument("--text", default=TEXT)
    options.add_argument("--only", choices=[kind for kind, _, _ in FILES], help="one of the files")
    given = options.parse_args()
    with TemporaryDirectory() as place:
        for row in rows(given, Path(place)):
            print(row, flush=True)


def rows(given: argparse.Namespace, place: Path) -> Any:
    """Lines of a Markdown table."""
    from trimtab.data.windows import evaluation_windows
    from trimtab.measure.perplexity import token_losses

    yield "| file | ours | ours, activations rounded | llama.cpp | apart | error | both rounded | error | a token | tokens |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    made: dict[int, Any] = {}
    ours: dict[int, Any] = {}
    for kind, bits, spread in FILES:
        if given.only not in (None, kind):
            continue
        if bits not in made:
            made[bits] = compressed(bits)
            model, tokenizer = made[bits]
            windows = evaluation_windows(given.text, tokenizer, given.windows, given.length, SEED)
            ours[bits] = token_losses(model, windows)
        file, blocks = write(*made[bits], place, spread)
        if blocks:
            with rounding_activations(model, blocks):
                rounded = token_losses(model, windows)
        theirs = asked(given.llama_python, file, windows, place)
        yield line(f"{bits} bits as {kind}", ours[bits], rounded if blocks else ours[bits], theirs)


def line(name: str, ours: Any, rounded: Any, theirs: Any) -> str:
    """Errors are those of the mean differences, over windows."""
    a, b, c = (float(losses.mean().exp()) for losses in (ours, rounded, theirs))
    moved = f"{spread_of(rounded - ours):.4f}, {spread_of(theirs - ours):.4f}"
    return (
        f"| {name} | {a:.3f} | {b:.3f} | {c:.3f} | {apart(ours, theirs)} | {apart(rounded, theirs)} | {moved} | {ours.numel()} |"
    )


def spread_of(difference: Any) -> float:
    """By how many nats a token moves, root mean square: rounding of one size moves tokens by one size, whichever way."""
    return float(difference.square().mean().sqrt())


def apart(ours: Any, theirs: Any) -> str:
    gap = theirs.mean(1) - ours.mean(1)
    return f"{float(gap.mean().expm1()):+.3%} | {float(gap.std() / len(gap) ** 0.5):.3%}"


@contextmanager
def rounding_activations(model: Any, paths: set[str]) -> Iterator[None]:
    """What enters these matrices is rounded to Q8_0 meanwhile, as llama.cpp does before it multiplies with block formats."""
    modules = [model.get_submodule(path) for path in paths]
    hooks = [module.register_forward_pre_hook(lambda _, given: (q8_0(given[0]), *given[1:])) for module in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def q8_0(x: torch.Tensor) -> torch.Tensor:
    """x: [..., in]. Blocks of 32, whole numbers from -127 to 127 and a float16 step."""
    blocks = x.float().unflatten(-1, (-1, 32))
    step = blocks.abs().amax(-1, keepdim=True) / 127
    codes = torch.where(step > 0, blocks / torch.where(step > 0, step, 1), 0).round()
    return (codes * step.half().float()).flatten(-2).to(x.dtype)


def compressed(bits: int) -> tuple[Any, Any]:
    import trimtab

    done = trimtab.compress(MODEL, f"rtn(bits={bits}, group_size=32, symmetric=True)", dtype=torch.float32)
    return done.model, done.tokenizer


def write(model: Any, tokenizer: Any, place: Path, spread: bool) -> tuple[Path, set[str]]:
    """The file, and the paths of the matrices that are block formats in it. spread: every tensor as F32."""
    from trimtab.host.export import gguf
    from trimtab.host.export.contents import Contents, values_of
    from trimtab.host.export.stock import stock_config

    contents = Contents(model, tokenizer, stock_config(model), values_of(model))
    entries = gguf.plan(contents, None)
    if spread:
        entries = [replace(entry, becomes="F32") for entry in entries]
    gguf.write(contents, entries, place)
    blocks = {entry.name.removesuffix(".weight") for entry in entries if entry.becomes.startswith("Q")}
    # A head that shares the embedding's matrix is multiplied with it, so what enters it is rounded as well.
    tied = {"lm_head"} if model.config.tie_word_embeddings and "model.embed_tokens" in blocks else set()
    return place / gguf.FILE, (blocks | tied) - {"model.embed_tokens"}


def asked(python: str, file: Path, windows: Any, place: Path) -> Any:
    np.save(place / "windows.npy", windows.numpy())
    task = json.dumps({"model": str(file), "windows": str(place / "windows.npy")}) + "\n"
    script = str(Path(__file__).with_name("export_perplexity_llamacpp.py"))
    done = subprocess.run([python, script], input=task, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return torch.tensor(json.loads(done.stdout.splitlines()[-1])["losses"], dtype=torch.float64)


if __name__ == "__main__":
    main()

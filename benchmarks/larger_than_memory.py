"""A model that does not fit: compressed with `--offload` under a limit on addresses, and in memory without one.

    python benchmarks/larger_than_memory.py                # the 1.1 B shape: 4.4 GB in float32, under 3 GiB

The model is random, stored in bfloat16, and worked on in float32. Every run is a process of its own with one thread. Prints one
line of JSON: whether all files are the same to the byte, seconds, the most memory, and what is said without `--offload`.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ABOUT = {"hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 32000}
RECIPE = "wanda(sparsity=0.5) -> rtn(bits=4, group_size=64)"
PER_SHARD = 4  # blocks
RUN = """
import json, sys, time
import torch
from trimtab.host.compress import compress
model, recipe, out, offload = sys.argv[1:]
begun = time.perf_counter(), time.process_time()
done = compress(model, recipe, out, dtype=torch.float32, offload=offload or None)
wall, own = time.perf_counter() - begun[0], time.process_time() - begun[1]
print(json.dumps({"seconds": wall, "processor_seconds": own, "peak_memory": done.report.peak_memory}))
"""


def made(folder: Path, layers: int) -> Path:
    """The model, shard by shard: never more than one tensor of it is in memory."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from trimtab.core.seeds import Seeds
    from trimtab.host import tensor_file
    from trimtab.testing.folders import byte_tokenizer

    config = LlamaConfig(**ABOUT, num_hidden_layers=layers, max_position_embeddings=2048, dtype="bfloat16")
    config.architectures = ["LlamaForCausalLM"]
    with torch.device("meta"):
        tensors = LlamaForCausalLM(config).to(torch.bfloat16).state_dict()

    def values(name: str) -> torch.Tensor:
        shape = tensors[name].shape
        drawn = torch.randn(shape, generator=Seeds(0).at(name)) if len(shape) > 1 else torch.ones(shape)
        return (drawn * shape[-1] ** -0.5 if len(shape) > 1 else drawn).to(torch.bfloat16)

    shards: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        number = 1 + int(name.split(".")[2]) // PER_SHARD if ".layers." in name else 0
        shards.setdefault(number, {})[name] = tensor
    folder.mkdir()
    names = {number: f"model-{number:05d}.safetensors" for number in shards}
    for number, own in shards.items():
        tensor_file.write(folder / names[number], own, values)
    index = {"metadata": {}, "weight_map": {name: names[number] for number, own in shards.items() for name in own}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def run(model: Path, recipe: Path, out: Path, offload: Path | None, limit: int | None) -> dict[str, Any]:
    """limit: bytes of addresses, from the beginning of the process."""

    def limited() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    words = [sys.executable, "-c", RUN, *map(str, (model, recipe, out, offload or ""))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, preexec_fn=limited)
    lines = done.stdout.splitlines() if not done.returncode else done.stderr.splitlines()
    return json.loads(lines[-1]) if not done.returncode else {"failed": lines[-1][:400]}


def files(folder: Path) -> dict[str, str]:
    from trimtab.host import manifest

    names = sorted(p.name for p in folder.iterdir() if p.name not in ("README.md", "receipt.json", manifest.NAME))
    return dict(zip(names, manifest.digests(folder, names), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--limit", type=float, default=3.0, help="GiB")
    parser.add_argument("--tokens", type=int, default=128)
    given = parser.parse_args()
    from trimtab.core.recipe import Calibration, Recipe

    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        model, text, recipe = made(place / "model", given.layers), place / "text.txt", place / "recipe.yaml"
        text.write_text("\n\n".join(f"paragraph {n} of a text that says very little, again and again" for n in range(400)))
        recipe.write_text(Recipe.of(RECIPE, Calibration(str(text), given.tokens, 64)).yaml())
        limit = int(given.limit * 2**30)
        found = {
            "refused": run(model, recipe, place / "refused", None, limit),
            "offloaded": run(model, recipe, place / "offloaded", place / "away", limit),
            "in_memory": run(model, recipe, place / "in_memory", None, None),
        }
        same = "failed" not in found["offloaded"] and files(place / "offloaded") == files(place / "in_memory")
    about = {**ABOUT, "layers": given.layers, "limit_bytes": limit, "tokens": given.tokens, "recipe": RECIPE}
    print(json.dumps({**about, "same": same, **found}))


if __name__ == "__main__":
    main()

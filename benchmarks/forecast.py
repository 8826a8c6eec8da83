"""Is what `--dry-run` says what then happens? Memory, seconds and size of random models, every run in a process of its own.

    python benchmarks/forecast.py --runs 30            # one line per run, then the worst ratios; minutes

Widths, depths, recipes and amounts of calibration text are drawn from `--seed`. Let nothing else run: seconds are compared.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

RUN = """
import json, sys, time
from trimtab.host.compress import ahead, compress
model, recipe, out = sys.argv[1:]
begun = time.perf_counter()
if out:
    print(json.dumps({"memory": compress(model, recipe, out).report.peak_memory, "seconds": time.perf_counter() - begun}))
else:
    print(json.dumps(ahead(model, recipe).json()["forecast"]))
"""
STEPS = (
    "rtn(bits=4, group_size=32)",
    "wanda(sparsity=0.5)",
    "sparsegpt(sparsity=0.5)",
    "gptq(bits=3, group_size=32)",
    "gptaq(bits=3, group_size=32)",
    "awq -> rtn(bits=3, group_size=32)",
    "wanda(pattern='2:4') -> gptq(bits=4, group_size=32)",
    "svd_llm(keep=0.5)",
)


def process(*words: object) -> dict:
    done = subprocess.run([sys.executable, "-c", RUN, *map(str, words)], env=os.environ, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def drawn(draw: random.Random, folder: Path) -> tuple[Path, Path, dict]:
    from trimtab.core.recipe import Calibration, Recipe
    from trimtab.testing.folders import tiny_folder

    width = draw.choice((128, 256, 384, 512))
    about = {"hidden_size": width, "intermediate_size": 3 * width - 3 * width % 32, "num_hidden_layers": draw.randint(2, 12)}
    about |= {"num_attention_heads": width // 32, "vocab_size": draw.choice((512, 4096, 16384)), "max_position_embeddings": 512}
    model = tiny_folder(folder / "model", "llama", **about)
    words = ["".join(draw.choices("abcdefghijklmnop", k=5)) for _ in range(500)]
    (folder / "text.txt").write_text("\n\n".join(" ".join(draw.choices(words, k=100)) for _ in range(400)))
    length = draw.choice((64, 128, 256))
    shown = Calibration(str(folder / "text.txt"), length * draw.choice((16, 64, 128)), length)
    steps = draw.choice(STEPS)
    (folder / "recipe.yaml").write_text(Recipe.of(steps, shown).yaml())
    return model, folder / "recipe.yaml", {**about, "steps": steps, "tokens": shown.tokens, "length": length}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    ratios: dict[str, list[float]] = {"memory": [], "seconds": [], "files": []}
    for number in range(given.runs):
        with tempfile.TemporaryDirectory() as place:
            model, recipe, about = drawn(random.Random(f"{given.seed}/{number}"), Path(place))
            said, found = process(model, recipe, ""), process(model, recipe, Path(place) / "out")
            found["files"] = sum(file.stat().st_size for file in (Path(place) / "out").glob("*.safetensors"))
        line = {name: round(said[name] / found[name], 4) for name in ratios if said[name]}
        for name, ratio in line.items():
            ratios[name].append(ratio)
        print(json.dumps({**about, "said / found": line}), flush=True)
    for name, values in ratios.items():
        print(f"{name}: said / found from {min(values)} to {max(values)} (n = {len(values)}, seed {given.seed})")


if __name__ == "__main__":
    main()

"""Is what `--dry-run` says what then happens? Memory, seconds and size of random models, every run in a process of its own.

    python benchmarks/forecast.py --runs 30            # one line per run, then the worst ratios; minutes

Widths, depths, recipes and amounts of calibration text are drawn from `--seed`. Let nothing else run: seconds are compared. On a
machine that is shared, `--processor` compares seconds of processor time, of one thread.
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
if sys.argv.pop(1) == "processor":
    time.perf_counter = time.process_time  # before anybody takes it from there
from trimtab.host.compress import ahead, compress
model, recipe, out = sys.argv[1:]
begun = time.perf_counter()
if out:
    report = compress(model, recipe, out).report
    print(json.dumps({"memory": report.peak_memory, "seconds": time.perf_counter() - begun, "parts": report.profile}))
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


def process(clock: str, *words: object) -> dict:
    environment = {**os.environ, **({"OMP_NUM_THREADS": "1"} if clock == "processor" else {})}
    done = subprocess.run([sys.executable, "-c", RUN, clock, *map(str, words)], env=environment, capture_output=True, text=True)
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
    parser.add_argument("--first", type=int, default=0, help="number of the first run")
    parser.add_argument("--processor", action="store_true", help="seconds of processor time instead of the clock's")
    given = parser.parse_args()
    clock = "processor" if given.processor else "wall"
    ratios: dict[str, list[float]] = {"memory": [], "seconds": [], "files": []}
    for number in range(given.first, given.first + given.runs):
        with tempfile.TemporaryDirectory() as place:
            model, recipe, about = drawn(random.Random(f"{given.seed}/{number}"), Path(place))
            said, found = process(clock, model, recipe, ""), process(clock, model, recipe, Path(place) / "out")
            found["files"] = sum(file.stat().st_size for file in (Path(place) / "out").glob("*.safetensors"))
        line = {name: round(said[name] / found[name], 4) for name in ratios if said[name]}
        for name, ratio in line.items():
            ratios[name].append(ratio)
        steps = [step["seconds"] for step in said["steps"]]
        print(json.dumps({**about, "said": steps, "found": found["parts"], "said / found": line}), flush=True)
    for name, values in ratios.items():
        print(f"{name}: said / found from {min(values)} to {max(values)} (n = {len(values)}, seed {given.seed})")


if __name__ == "__main__":
    main()

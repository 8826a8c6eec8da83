"""Exports to GPTQ and AWQ, multiplied by the kernels of GPTQModel, against the same models here.

    python benchmarks/export_kernels.py --python ENV/bin/python

ENV has transformers, optimum and GPTQModel and needs no trimtab. A llama of two layers and 128 channels in groups of 32, in which
every code occurs: the largest difference of the logits of 64 tokens, opened by transformers and by GPTQModel, in three types.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
EXPORTS = (
    *(("gptq", bits, True) for bits in (2, 3, 4, 8)),
    *((to, 4, symmetric) for to, symmetric in (("gptq", False), ("awq", True), ("awq", False))),
)
TOKENS = 64


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--python", required=True, help="an interpreter that has GPTQModel")
    given = options.parse_args()
    print("| export | opened by | type | kernel | logits apart | of |\n|---|---|---|---|---|---|")
    with TemporaryDirectory() as place:
        for to, bits, symmetric in EXPORTS:
            name = f"{to}, {bits} bits{'' if symmetric else ', zero points'}"
            wanted = written(to, bits, symmetric, Path(place) / name)
            script = str(Path(__file__).with_name("export_kernels_gptqmodel.py"))
            task = json.dumps({"model": str(Path(place) / name), "tokens": TOKENS}) + "\n"
            done = subprocess.run([given.python, script], input=task, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(done.stderr[-2000:])
            for row in json.loads(done.stdout.splitlines()[-1]):
                found = row["why"] if row["why"] else f"{np.abs(np.array(row['logits']) - wanted).max():.2g}"
                print(
                    f"| {name} | {row['by']} | {row['dtype']} | {row['kernel']} | {found} | {np.abs(wanted).max():.2g} |",
                    flush=True,
                )


def written(to: str, bits: int, symmetric: bool, folder: Path) -> "np.ndarray":
    """Writes the export. Returns the model's own logits [1, tokens, vocabulary]."""
    sys.path.insert(0, str(ROOT / "tests" / "host"))
    from export_models import contents_of, grouped, packed_model

    from trimtab.host.export.targets import TARGETS

    model = packed_model(lambda _: grouped(bits, 32, symmetric), hidden_size=128, intermediate_size=256).eval()
    with torch.no_grad():
        logits = model(torch.arange(3, 3 + TOKENS)[None]).logits.numpy().copy()
    contents = contents_of(model)
    folder.mkdir()
    TARGETS[to].write(contents, TARGETS[to].plan(contents, None), folder)
    return logits


if __name__ == "__main__":
    main()

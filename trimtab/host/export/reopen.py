"""An export is opened again, in a process that knows nothing of trimtab, and must say what the model says here.

Logits of a few prompts are compared. A reader that multiplies the same float32 matrices gives the same numbers up to the order
of sums; llama.cpp rounds activations to 8 bits before it multiplies and keeps keys and values in float16, so there the
logits move a little although every weight is the same. A mistake (a row out of place, a missing bias, another rotation)
shows as a difference as large as the logits themselves; where every tensor is exact, that is an error.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trimtab.core.errors import TrimtabError
from trimtab.core.report import Measurement
from trimtab.core.seeds import Seeds
from trimtab.tensors.divergence import kl

LLAMA_PYTHON = "TRIMTAB_LLAMA_PYTHON"  # an interpreter that has llama-cpp-python, where this one has not
SAME = 1e-3  # of the spread of the logits: readers that multiply in float32
ROUNDED = 0.25  # the same where activations are rounded on the way
TEXTS = (
    "The lighthouse keeper lived alone on the island, and every evening he",
    "Question: How many legs does a spider have?\nAnswer:",
    "def mean(values):\n    return sum(values) / len(values)\n",
    "In 1969, 3 people flew to the Moon; it's 384,400 km away, isn't it?",
)
LONGEST = 24


@dataclass(frozen=True)
class Reopened:
    """What the other reader said. logits [tokens, vocabulary]; tokens and said as `reopen_llamacpp` gives them."""

    opened_by: str
    logits: Tensor
    tokens: list[list[int]]
    said: list[list[int]]


def prompts(tokenizer: Any, vocabulary: int) -> list[list[int]]:
    """Token ids of a few short texts; without a tokenizer, arbitrary ones."""
    if tokenizer is None:
        return torch.randint(vocabulary, (len(TEXTS), LONGEST), generator=Seeds(0).at("prompts")).tolist()
    return [tokenizer(text, add_special_tokens=False)["input_ids"][:LONGEST] for text in TEXTS]


@torch.no_grad()
def logits(model: Any, ids: Sequence[Sequence[int]]) -> Tensor:
    """[tokens, vocabulary] float32 of all prompts, one after the other."""
    return torch.cat([model(torch.tensor([one], device=model.device)).logits[0].float().cpu() for one in ids])


def reopen_stock(
    folder: Path,
    ids: Sequence[Sequence[int]],
    gguf: str | None = None,
    told: Mapping[str, Any] | None = None,
    reader: str = "reopen_transformers.py",
) -> Reopened:
    """By stock transformers, or another reader beside this file. told: what it cannot take from a GGUF file.

    Raises `TrimtabError` if it does not open.
    """
    task = {"folder": str(folder), "gguf": gguf, "ids": ids, "told": dict(told or {})}
    return _ask(sys.executable, reader, task)


def reopen_llamacpp(
    folder: Path, ids: Sequence[Sequence[int]], gguf: str, texts: Sequence[str] = (), new_tokens: int = 0
) -> Reopened:
    """By llama.cpp, where `llama_python` finds it. Raises `TrimtabError` if it does not open."""
    python = llama_python()
    assert python, "ask llama_python first"
    task = {"folder": str(folder), "gguf": gguf, "ids": ids, "texts": list(texts), "new_tokens": new_tokens}
    return _ask(python, "reopen_llamacpp.py", task)


def llama_python() -> str | None:
    """An interpreter that has llama-cpp-python: the one that TRIMTAB_LLAMA_PYTHON names, or this one; None if neither."""
    return os.environ.get(LLAMA_PYTHON) or (sys.executable if find_spec("llama_cpp") else None)


def compare(ours: Tensor, theirs: Reopened) -> list[Measurement]:
    """How far apart two sets of logits are: the largest difference, KL(ours || theirs), how often the likeliest token is one."""
    if theirs.logits.shape != ours.shape:
        raise TrimtabError(f"opened again, the export gives {list(theirs.logits.shape)} logits, not {list(ours.shape)}")
    setting = {"opened_by": theirs.opened_by, "spread": float(ours.std())}
    gap = (ours - theirs.logits).abs()
    apart, same = kl(ours, theirs.logits), (ours.argmax(1) == theirs.logits.argmax(1)).double()
    count = len(ours)
    return [
        Measurement("largest logit difference", float(gap.max()), 0.0, count, "logits", setting),
        Measurement("KL", float(apart.mean()), float(apart.std() / count**0.5), count, "nats", setting),
        Measurement("same top token", float(same.mean()), float(same.std() / count**0.5), count, "share", setting),
    ]


def check_same(ours: Tensor, theirs: Reopened, rounded: bool) -> None:
    """Raises `TrimtabError` where logits differ by more than arithmetic explains. rounded: the reader rounds activations."""
    away = float((ours - theirs.logits).double().square().mean().sqrt() / ours.double().std())
    if not away <= (ROUNDED if rounded else SAME):
        raise TrimtabError(
            f"{theirs.opened_by} opens the export but says something else: logits differ by {away:.2g} of their spread, "
            "although every tensor was written exactly; nothing was published"
        )


def _ask(python: str, script: str, task: dict[str, Any]) -> Reopened:
    # -P: the folder of the script holds modules that are called like packages it imports.
    command = [python, "-P", str(Path(__file__).with_name(script))]
    with TemporaryDirectory() as place:
        path = Path(place) / "logits.npy"
        asked = json.dumps({**task, "logits": str(path)}) + "\n"
        done = subprocess.run(command, input=asked, capture_output=True, text=True, env=_alone())
        if done.returncode:
            lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
            raise TrimtabError(f"the export does not open again: {lines[-1] if lines else f'code {done.returncode}'}")
        answer = json.loads(done.stdout.splitlines()[-1])
        found = torch.from_numpy(np.load(path))
    return Reopened(answer["opened_by"], found, answer.get("tokens", []), answer.get("said", []))


def _alone() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}

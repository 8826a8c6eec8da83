"""Stands for the command line: the same words in, the same kinds of lines out, and no work. The model says how it goes."""

import json
import signal
import sys
import time
from pathlib import Path

METHODS = [
    {
        **{"id": "gptq", "room": "quantize", "kind": "linear", "title": "GPTQ: accurate", "paper": "arXiv:2210.17323"},
        **{"fidelity": "exact", "claims": [{"name": "beats-rtn", "status": "holds"}]},
        "knobs": [
            {"name": "bits", "default": 4, "help": "bits per code", "type": "int", "low": 2, "high": 8, "options": []},
            {
                "name": "clip",
                "default": False,
                "help": "search the range",
                "type": "bool",
                "low": None,
                "high": None,
                "options": [],
            },
        ],
    },
    {
        **{"id": "sensitivity", "room": "probe", "kind": "probe", "title": "Sensitivity", "paper": "-"},
        **{"fidelity": "exact", "claims": [], "knobs": []},
    },
]
BLOCKS = 30


def progress(phase: str, done: int, total: int, detail: str = "") -> None:
    told = {"phase": phase, "done": done, "total": total, "detail": detail, "seconds": 0.1 * done, "memory": 571_000_000}
    print(json.dumps(told), file=sys.stderr, flush=True)


def plan() -> object:
    steps = [{"method": "gptq(bits=3)", "kind": "linear", "sites": ["a", "b"], "matched": {}, "bits": 3.303}]
    return {"steps": steps, "parameters": 134_515_008, "bytes_before": 538e6, "bytes_after": 100.6e6}


def work(words: list[str], model: str) -> object:
    for block in range(BLOCKS + 1):
        progress("sweep", block, BLOCKS, f"model.layers.{block}.mlp.up_proj")
        if model == "asset:slow" and block == 12:
            time.sleep(60)
    out = Path(next(word for word in words if word.startswith("--output-dir=")).partition("=")[2])
    out.mkdir()
    (out / "receipt.json").write_text(json.dumps({"model": model}))
    return {"bytes_before": 538e6, "bytes_after": 100.6e6, "report": {}}


def main(words: list[str]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever was inherited
    command, model = words[0], words[1]
    if model == "asset:broken":
        print("a line before\ntrimtab: error: broken has no block; give another model", file=sys.stderr)
        sys.exit(2)
    if model == "asset:killed":
        signal.raise_signal(signal.SIGKILL)
    if command == "methods":
        print(json.dumps(METHODS))
        return
    progress("load", 0, 1, model)
    if command == "report":
        print(Path(model).parent.joinpath("measured.json").read_text())
    else:
        print(json.dumps(plan() if command == "plan" else work(words, model)))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        print("trimtab: interrupted; nothing was left half-written", file=sys.stderr, flush=True)
        sys.exit(130)

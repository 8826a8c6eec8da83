"""How fast models answer: trimtab's native runtime, llama.cpp and torch, in one run on one machine.

    python benchmarks/runtime.py                          all models and contenders; make sure that nothing else runs
    python benchmarks/runtime.py --models 135m            one of them
    python benchmarks/runtime.py --only 4 Q4_0            contenders whose name has one of these words in it
    python benchmarks/runtime.py --instructions avx2      the same without AVX-512, on all sides
    python benchmarks/runtime.py --quick                  a tiny model: tries the plumbing, its numbers mean nothing

Every contender is a process of its own; in each round they take turns, in reversed order from one round to the next. Logits are
compared first: what computes something else shows no speed. `make peers` builds llama.cpp.
"""

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import psutil
import runtime_models as models
from answering import Side
from passes import machine_seconds
from runtime_page import Line, gate, page

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
WORK = ROOT / "build" / "bench"
PEERS = {"": ROOT / ".runtime-venv", "avx2": ROOT / ".runtime-venv-avx2"}
FORCED = {
    "": {},
    "avx2": {
        "TRIMTAB_CPU": "avx2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    },
}
KEPT = ("red", "error", "same_top", "bytes_per_token", "kernel", "versions")  # of what is known of a contender, in its line
GATED = 64  # tokens that are compared
SPARE = 2 << 30  # bytes of memory to leave free
SPARSE = {"50 % sparse": "sparse50", "70 % sparse": "sparse70", "2:4 sparse": "nm2of4"}  # bfloat16 values of what is left


@dataclass
class Contender:
    """One thing to run. kind: of the stored model. against: what its speed is divided by. more: further words to `load`."""

    name: str
    program: str
    kind: str
    against: tuple[str, ...] = ()
    more: dict[str, Any] = field(default_factory=dict)
    path: Path = Path()
    stored: int = 0
    known: dict[str, Any] = field(default_factory=dict)  # what loading and comparing found


def contenders(shape: models.Shape) -> list[Contender]:
    """What is run on a model. llama.cpp's formats of 256 weights need widths that they divide."""
    wide = shape.hidden % 256 == shape.inner % 256 == 0
    two = ("llama.cpp Q2_K", "llama.cpp TQ2_0") if wide else ("llama.cpp Q4_0",)
    three = ("llama.cpp Q3_K",) if wide else ("llama.cpp Q4_0",)
    torch = ("torch bfloat16", "torch float32")
    head = {bits: {"head_bits": max(bits, 4)} if shape.tied else {} for bits in (2, 3, 4, 8)}
    ours = [
        Contender("trimtab 2 bit", "trimtab", "grouped2", (*two, *torch), head[2]),
        Contender("trimtab 2 bit, free planes", "trimtab", "free2", (*two, *torch), head[2]),
        Contender("trimtab 3 bit", "trimtab", "grouped3", (*three, *torch), head[3]),
        Contender("trimtab 3 bit, free planes", "trimtab", "free3", (*three, *torch), head[3]),
        Contender("trimtab 4 bit", "trimtab", "grouped4", ("llama.cpp Q4_0", "torch int4", *torch), head[4]),
        Contender("trimtab 8 bit", "trimtab", "even8", ("llama.cpp Q8_0", *torch), head[8]),
        Contender("trimtab bfloat16", "trimtab", "bfloat16", ("llama.cpp BF16", *torch)),
        *(Contender(f"trimtab {name}", "trimtab", kind, ("trimtab bfloat16", *torch)) for name, kind in SPARSE.items()),
    ]
    names = ("q2_k", "tq2_0", "q3_k", "q4_0", "q8_0", "bf16") if wide else ("q4_0", "q8_0", "bf16")
    theirs = [Contender(f"llama.cpp {name.upper()}", "llama.cpp", name) for name in names]
    return ours + theirs + [Contender(f"torch {kind}", "torch", kind) for kind in ("int4", "bfloat16", "float32")]


class Stage:
    """The processes that are there. Where memory is short, those that were used longest ago end, and start anew at their turn."""

    def __init__(self, given: argparse.Namespace, log: TextIO):
        self.given, self.log = given, log
        self.sides: dict[str, Side] = {}

    def side(self, one: Contender, threads: int) -> Side:
        """Its process, with the model loaded. `one.known["red"]` says why not."""
        if one.name not in self.sides:
            self._make_room(one)
            self.sides[one.name] = self.start(one.program)
            what = {"path": one.path, "threads": threads, **({"kind": one.kind} if one.program == "torch" else one.more)}
            one.known |= self.sides[one.name].ask("load", **what)
        side = self.sides.pop(one.name)
        self.sides[one.name] = side  # the last of the dictionary is the last that was used
        return side

    def start(self, program: str) -> Side:
        mine = [sys.executable, HERE / f"runtime_{program.replace('.', '')}.py"]
        if program == "llama.cpp":
            mine[0] = PEERS[self.given.instructions] / "bin" / "python"
        return Side(mine, self.log, FORCED[self.given.instructions])

    def close(self) -> None:
        while self.sides:
            self.sides.popitem()[1].close()

    def _make_room(self, one: Contender) -> None:
        # Twice: what a file becomes in memory, and the file while it is read.
        needed = one.known.get("resident", 2 * one.stored) + SPARE
        while self.sides and psutil.virtual_memory().available < needed:
            self.sides.pop(next(iter(self.sides))).close()


def prepare(model: str, chosen: Sequence[Contender], stage: Stage) -> None:
    """Writes what is not in the cache yet, and notes where it is and how large."""
    for one in chosen:
        print(f"{model}: {one.name}: files", file=sys.stderr)
        if one.program == "llama.cpp":
            one.path = _gguf(model, one.kind, stage)
            one.stored = one.path.stat().st_size
            one.known["bytes_per_token"] = _read_per_token(one.path)
        else:
            one.path = models.folder(model, one.kind if one.program == "trimtab" else "bfloat16")
            one.stored = sum(file.stat().st_size for file in one.path.glob("*.safetensors"))


def _gguf(model: str, kind: str, stage: Stage) -> Path:
    def quantize(source: Path, target: Path) -> None:
        side = stage.start("llama.cpp")
        said = side.ask("quantize", source=source, target=target, kind=kind, threads=max(stage.given.threads))
        side.close()
        if "red" in said:
            raise SystemExit(f"llama.cpp makes no {kind}: {said['red']}")

    return models.gguf_file(model) if kind == "bf16" else models.quantized_file(model, kind, quantize)


def _read_per_token(path: Path) -> int:
    """Bytes of all tensors but an embedding that is only looked up."""
    from gguf import GGUFReader

    sizes = {str(tensor.name): int(tensor.n_bytes) for tensor in GGUFReader(path).tensors}
    return sum(sizes.values()) - (sizes["token_embd.weight"] if "output.weight" in sizes else 0)


def compare(model: str, chosen: Sequence[Contender], stage: Stage) -> None:
    """The gate. Notes for each contender "red", "error" and "same_top".

    Ours must agree with torch on the very same folder, before the head is rounded; "error" is against the model in bfloat16.
    """
    ids = _compared(models.SHAPES[model])
    plain = _logits(stage, Contender("judge", "torch", "judge", path=models.folder(model, "bfloat16")), ids)
    for one in chosen:
        print(f"{model}: {one.name}: gate", file=sys.stderr)
        found = _logits(stage, one, ids)
        if found is None or plain is None:
            one.known.setdefault("red", "nothing to compare with")
            continue
        one.known["error"], one.known["same_top"] = _apart(plain, found)
        judged = one.known["error"], one.known["same_top"]
        if one.program == "trimtab":
            same = _logits(stage, Contender("judge", "torch", "judge", path=one.path), ids)
            exact = _logits(stage, Contender(one.name, one.program, one.kind, path=one.path), ids) if one.more else found
            judged = (float("nan"), 0.0) if same is None or exact is None else _apart(same, exact)
        elif one.kind not in ("bf16", "bfloat16", "float32"):
            judged = (float(np.isfinite(found).all()) - 1.0, 1.0)  # rounded otherwise than anything we could compare with
        one.known.setdefault("red", gate(*judged, one.program))


def _logits(stage: Stage, one: Contender, ids: Sequence[int]) -> Any:
    """[tokens, vocabulary], or None: then `one.known["red"]` says why. The process ends afterwards."""
    target = WORK / "logits.npy"
    target.unlink(missing_ok=True)
    side = stage.side(one, max(stage.given.threads))
    said = one.known if "red" in one.known else side.ask("logits", ids=ids, target=target)
    stage.sides.pop(one.name).close()
    if "red" in said:
        one.known["red"] = said["red"]
        return None
    return np.load(target)


def _apart(base: Any, other: Any) -> tuple[float, float]:
    """(rms difference over the spread of base's logits, share of positions with the same top token).

    What all logits of a position have in common changes no probability, and is left out.
    """
    left, right = (logits.astype(np.float64) - logits.mean(-1, keepdims=True, dtype=np.float64) for logits in (base, other))
    error = float(np.sqrt(np.square(right - left).mean() / np.square(left).mean()))
    return error, float((base.argmax(-1) == other.argmax(-1)).mean())


def _compared(shape: models.Shape) -> list[int]:
    """A text where the weights are trained, any ids where they are random."""
    from trimtab.host.model_assets import resolve_model
    from trimtab.measure.bench import words

    return words(Path(resolve_model(shape.asset)), GATED, shape.vocabulary) if shape.asset else _ids(shape, GATED)


def _ids(shape: models.Shape, count: int) -> list[int]:
    return np.random.default_rng(0).integers(3, shape.vocabulary, count).tolist()


def rounds(model: str, chosen: Sequence[Contender], stage: Stage, common: dict[str, Any]) -> list[Line]:
    """One line per contender and number of threads."""
    given, memory = stage.given, stage.start("memory")
    memory.ask("load", **({"bytes": 1 << 24} if given.quick else {}))
    lines = {(one.name, threads): _line(one, model, threads, common) for one in chosen for threads in given.threads}
    good = [one for one in chosen if not one.known["red"]]
    if given.ask:
        input(f"{model}: make the machine quiet, then press Enter\n")
    for number in range(given.repeats):
        for one in good if number % 2 == 0 else reversed(good):
            print(f"{model}: round {number + 1} of {given.repeats}: {one.name}", file=sys.stderr)
            side = stage.side(one, given.threads[0])
            _warm(side)
            for threads in given.threads:
                lines[one.name, threads]["red"] = one.known["red"]
                _turn(side, memory, lines[one.name, threads], threads, models.SHAPES[model], given)
    memory.close()
    stage.close()
    return list(lines.values())


def _line(one: Contender, model: str, threads: int, common: dict[str, Any]) -> Line:
    empty: Line = {name: [] for name in ("decode", "prefill", "read")}
    known = {name: one.known[name] for name in KEPT if name in one.known}
    return {
        **common,
        **{"model": model, "contender": one.name, "program": one.program, "kind": one.kind, "threads": threads},
        **{"against": list(one.against), "stored": one.stored, "versions": {}, "foreign": 0.0, "available": 0.0},
        **known,
        **empty,
    }


def _warm(side: Side) -> None:
    """What is done at the first call only, and caches that another contender has filled."""
    side.ask("decode", ids=[3, 4, 5, 6], new_tokens=4)


def _turn(side: Side, memory: Side, line: Line, threads: int, shape: models.Shape, given: argparse.Namespace) -> None:
    reading = memory.ask("read", threads=threads)
    begun, busy, own = time.perf_counter(), machine_seconds(), _used(side)
    said = [
        side.ask("threads", count=threads),
        decoded := side.ask("decode", ids=_ids(shape, given.prompt), new_tokens=given.new_tokens),
        read := side.ask("prefill", ids=_ids(shape, given.prefill)),
    ]
    red = next((answer["red"] for answer in said if "red" in answer), "")
    if red:
        line["red"] = line["red"] or red
        return
    line["available"] += (time.perf_counter() - begun) * (os.cpu_count() or 1)
    line["foreign"] += max(0.0, machine_seconds() - busy - (_used(side) - own))
    line["decode"].append(given.new_tokens / decoded["seconds"])
    line["prefill"].append(given.prefill / read["seconds"])
    line["read"].append(reading["bytes"] / reading["seconds"])
    if given.batch > 1 and line["program"] == "trimtab":
        several = side.ask("batch", ids=_ids(shape, given.prompt), new_tokens=given.new_tokens // 2, count=given.batch)
        line.setdefault("batch", []).append(several["tokens"] / several["seconds"])


def _used(side: Side) -> float:
    """Processor seconds of a side so far."""
    used = psutil.Process(side.process.pid).cpu_times()
    return float(used.user + used.system)


def common_facts(given: argparse.Namespace) -> dict[str, Any]:
    from trimtab.cli.doctor import processor
    from trimtab.host.provenance import commit

    setting = {name: getattr(given, name) for name in ("prompt", "new_tokens", "prefill", "repeats", "instructions", "batch")}
    name, flags = processor()
    return {
        "session": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "commit": commit(),
        "machine": {"processor": name, "flags": flags, "processors": os.cpu_count()},
        "setting": setting,
    }


def main() -> int:
    given = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # takes the processes that are being measured along
    WORK.mkdir(parents=True, exist_ok=True)
    common, lines = common_facts(given), list[Line]()
    ledger = WORK / "runtime-quick.jsonl" if given.quick else HERE / "runtime.jsonl"
    with (WORK / "runtime.log").open("a", encoding="utf-8") as log:
        for model in given.models:
            stage = Stage(given, log)
            try:
                lines += _one_model(model, stage, common, ledger)
            finally:
                stage.close()
    print(page(lines))
    if not given.quick:
        (HERE / "RUNTIME.md").write_text(page(_known(ledger)), encoding="utf-8")
    return 1 if any(line["red"] for line in lines) else 0


def _known(ledger: Path) -> list[Line]:
    """All lines of contenders that there are still."""
    lines = [json.loads(line) for line in ledger.read_text(encoding="utf-8").splitlines()]
    names = {model: {one.name for one in contenders(shape)} for model, shape in models.SHAPES.items()}
    return [line for line in lines if line["contender"] in names.get(line["model"], ())]


def _one_model(model: str, stage: Stage, common: dict[str, Any], ledger: Path) -> list[Line]:
    every = contenders(models.SHAPES[model])
    chosen = [one for one in every if any(word in one.name for word in stage.given.only)]
    prepare(model, chosen, stage)
    compare(model, chosen, stage)
    lines = rounds(model, chosen, stage, common)
    with ledger.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    return lines


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=models.SHAPES, help="default: all but tiny")
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD", help="contenders with one of these words in the name")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    parser.add_argument("--prompt", type=int, default=16, help="tokens before those that are decoded")
    parser.add_argument("--new-tokens", type=int, default=64, help="tokens that are decoded")
    parser.add_argument("--prefill", type=int, default=512, help="tokens that are read at once")
    parser.add_argument("--batch", type=int, default=1, help="conversations that ours continues together, besides one alone")
    parser.add_argument("--instructions", choices=PEERS, default="")
    parser.add_argument("--ask", action="store_true", help="wait for Enter between the gate and the rounds")
    parser.add_argument("--quick", action="store_true", help="one short round, the tiny model; nothing is written here")
    given = parser.parse_args()
    if given.quick:
        given.repeats, given.new_tokens, given.prefill, given.batch = 1, 4, 32, 4
    given.models = given.models or (["tiny"] if given.quick else ["135m", "0.5b", "1.1b"])
    return given


if __name__ == "__main__":
    raise SystemExit(main())

"""trimtab's passes against llm-compressor's: seconds, memory and perplexity on the same tokens and the same machine.

    python benchmarks/passes.py              the comparison, once; make sure that nothing else runs
    python benchmarks/passes.py --repeats 3  order reversed from one repeat to the next
    python benchmarks/passes.py --quick      8 windows instead of 128: tries the plumbing, its numbers mean nothing

One process at a time. Every result is judged before its speed is looked at; a run that fails the gate shows no speed.
"""

import argparse
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

from results import Line, gate, page, pages

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
WORK = ROOT / "build" / "bench"
PEER = ROOT / ".bench-venv" / "bin" / "python"
TORCH, COMPRESSOR = "torch==2.13.0", "llmcompressor==0.14.0.1"
BITS, GROUP_SIZE, LENGTH = 3, 64, 512
SHAPE = f"bits={BITS}, group_size={GROUP_SIZE}"


@dataclass(frozen=True)
class Side:
    """One thing to run. job: what it does; sides of one job are compared where both programs have some."""

    name: str
    program: str
    job: str
    options: tuple[str, ...]


def sides(fast_products: bool) -> list[Side]:
    """fast_products: whether trimtab takes float32 products through oneDNN here; then the peer is tried with that, too."""
    half = ("--dtype", "bfloat16")
    peer = [
        Side("llm-compressor float32", "llm-compressor", "gptq", ("--dtype", "float32")),
        Side("llm-compressor float32, oneDNN", "llm-compressor", "gptq", ("--dtype", "float32", "--onednn")),
        Side("llm-compressor bfloat16", "llm-compressor", "gptq", half),
    ]
    recipe = f"gptq({SHAPE}, order='energy')"  # spelled out, though it is the default: it is the peer's order, too
    return [
        Side("trimtab float32", "trimtab", "gptq", ("--recipe", recipe, "--dtype", "float32")),
        peer[0],
        *([peer[1]] if fast_products else []),
        Side("trimtab bfloat16", "trimtab", "gptq", ("--recipe", recipe, *half)),
        peer[2],
        Side("trimtab wanda", "trimtab", "wanda", ("--recipe", "wanda(sparsity=0.5)")),
        *(
            Side(f"trimtab {name} bfloat16", "trimtab", "awq", ("--recipe", f"awq({SHAPE}) -> {then}({SHAPE})", *half))
            for name, then in (("awq", "rtn"), ("awq, clipped", "awq_clip"))  # the paper's is the second, the peer's the first
        ),
        Side("llm-compressor awq bfloat16", "llm-compressor", "awq", ("--method", "awq", *half)),
        Side("trimtab hlq bfloat16", "trimtab", "hlq", ("--recipe", f"hlq({SHAPE})", *half)),
    ]


ROUNDING = Side("plain rounding", "trimtab", "rounding", ("--recipe", f"rtn({SHAPE})"))


@dataclass
class Session:
    """One call of this program: what all its runs share, and the lines they leave."""

    given: argparse.Namespace
    ledger: Path
    folder: str  # of the model; said in no line, since it belongs to this machine
    common: dict[str, Any]
    lines: list[Line]
    judged: dict[str, Line]  # by digest of the matrices, so that equal results are judged once

    def note(self, line: Line) -> Line:
        line = {**self.common, **line}
        self.lines.append(line)
        with self.ledger.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return line


def main() -> int:
    given = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # takes the process that is being measured along
    WORK.mkdir(parents=True, exist_ok=True)
    set_up_peer()
    session = opened(given)
    base = judge(session, None)
    session.note({"side": "the model itself", "program": "trimtab", "job": "base", "red": "", "versions": {}, **base})
    rounding = run(session, ROUNDING, float("inf"))
    if rounding["red"]:
        print(f"nothing to compare with: {ROUNDING.name}: {rounding['red']}", file=sys.stderr)
        return 1
    chosen = [s for s in sides(session.common["machine"]["fast_products"]) if any(word in s.name for word in given.only)]
    for repeat in range(given.repeats):
        for side in chosen if repeat % 2 == 0 else reversed(chosen):
            run(session, side, rounding["perplexity"])
    print(page(session.lines))
    if not given.quick:
        lines = map(json.loads, session.ledger.read_text(encoding="utf-8").splitlines())
        (HERE / "RESULTS.md").write_text(pages([*lines]), encoding="utf-8")
    return 1 if any(line["red"] for line in session.lines) else 0


def set_up_peer() -> None:
    """The peer's environment, where it is missing or not what it should be."""
    if PEER.exists() and installed() == COMPRESSOR.partition("==")[2]:
        return
    print(f"setting up {PEER.parent.parent.name} for {COMPRESSOR}", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", "--clear", PEER.parent.parent], check=True)
    for wanted in ([TORCH], [TORCH, COMPRESSOR]):  # torch first and alone, so that it stays the one that was asked for
        subprocess.run([PEER, "-m", "pip", "install", "--quiet", *wanted], check=True)


def installed() -> str:
    ask = "import importlib.metadata as m; print(m.version('llmcompressor'))"
    return subprocess.run([PEER, "-c", ask], capture_output=True, text=True, check=False).stdout.strip()


def opened(given: argparse.Namespace) -> Session:
    """Writes the windows and gathers what every line says about where it comes from."""
    windows, judged_windows = (8, 6) if given.quick else (given.windows, 24)
    numbers = ("--windows", windows, "--judged-windows", judged_windows, "--length", LENGTH, "--threads", given.threads)
    files = ("--shown", WORK / "shown.npy", "--judged", WORK / "judged.npy")
    found = process(ours("prepare", *numbers, *files), given.limit)
    setting = {
        "model": found.pop("model"),
        "shown": "asset:squad-drop",
        "judged": "asset:boolq",
        "windows": windows,
        "judged_windows": judged_windows,
        "length": LENGTH,
        "bits": BITS,
        "group_size": GROUP_SIZE,
        "threads": given.threads,
    }
    started = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    ledger = WORK / "quick.jsonl" if given.quick else HERE / "results.jsonl"
    return Session(given, ledger, found.pop("folder"), {"session": started, "setting": setting, **found}, [], {})


def run(session: Session, side: Side, rounding: float) -> Line:
    """Run a side, judge what it made, and leave a line. rounding: the perplexity it must not exceed."""
    print(f"{side.name} ...", file=sys.stderr)
    weights = WORK / "weights.safetensors"
    weights.unlink(missing_ok=True)
    line: Line = {"side": side.name, "program": side.program, "job": side.job, "versions": {}}
    busy, own, begun = machine_seconds(), child_seconds(), perf_counter()
    try:
        found = process(command(session, side, weights), session.given.limit)
        available = (perf_counter() - begun) * (os.cpu_count() or 1)
        foreign = max(0.0, machine_seconds() - busy - (child_seconds() - own))
        judged = judge(session, weights)  # refuses losses that are not finite
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        program = Path(str(error.cmd[1])).stem
        return session.note(line | {"red": f"{program} did not finish ({type(error).__name__}), see {LOG.relative_to(ROOT)}"})
    weights.unlink()
    red = gate(judged, side.job, rounding, BITS)
    return session.note(line | found | judged | {"red": red, "foreign": foreign, "available": available})


def command(session: Session, side: Side, weights: Path) -> list[Any]:
    setting = session.common["setting"]
    common = ("--weights", weights, "--threads", setting["threads"])
    if side.program == "trimtab":
        return ours("compress", "--windows", setting["windows"], "--shown", WORK / "shown.npy", *common, *side.options)
    shape = ("--bits", BITS, "--group-size", GROUP_SIZE)
    shown = ("--model", session.folder, "--windows", WORK / "shown.npy")
    return [PEER, HERE / "peer_llmcompressor.py", *shown, *shape, *common, *side.options]


def judge(session: Session, weights: Path | None) -> Line:
    """Perplexity of the original model with these matrices in it."""
    if weights is None:
        return process(judging(session), session.given.limit)
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest not in session.judged:
        session.judged[digest] = process([*judging(session), "--weights", weights], session.given.limit)
    return session.judged[digest]


def judging(session: Session) -> list[Any]:
    threads = session.common["setting"]["threads"]
    return ours("evaluate", "--judged", WORK / "judged.npy", "--group-size", GROUP_SIZE, "--threads", threads)


def ours(*arguments: Any) -> list[Any]:
    return [sys.executable, HERE / "side_trimtab.py", *arguments]


LOG = WORK / "log.txt"


def process(command: Sequence[Any], limit: float) -> dict[str, Any]:
    """Run a command to its end, alone, its output in the log; what it handed over."""
    result = WORK / "result.json"
    result.unlink(missing_ok=True)
    with LOG.open("a", encoding="utf-8") as log:
        subprocess.run([*map(str, command), "--result", str(result)], stdout=log, stderr=log, check=True, timeout=limit)
    found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return found


def machine_seconds() -> float:
    """Processor seconds that the whole machine has worked, all cores together."""
    user, nice, system, _idle, _wait, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def child_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="8 windows; nothing is written beside this program")
    parser.add_argument("--windows", type=int, default=128, help="of 512 tokens, that are shown")
    parser.add_argument("--repeats", type=int, default=1, help="runs of every side, order reversed each time")
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD", help="sides whose name has one of these words in it")
    parser.add_argument("--threads", type=int, default=2, help="of torch, on both sides")
    parser.add_argument("--limit", type=float, default=5400, help="seconds after which a process is given up")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())

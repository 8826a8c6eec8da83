"""Stands for a model that speaks: opens, answers word by word, heeds interrupts. Its name says how it behaves."""

import json
import signal
import sys
import time

speaking = False


def tell(what: str, **more: object) -> None:
    print(json.dumps({"what": what, **more}), flush=True)


def interrupted(*_: object) -> None:
    if speaking:
        raise KeyboardInterrupt


def answer(model: str, question: dict[str, object]) -> None:
    global speaking
    tokens, stopped = 0, False
    most = 10**9 if model == "asset:endless" else int(str(question.get("new_tokens", 64)))
    try:
        speaking = True
        while tokens < most:
            tokens += 1
            tell("text", text=f" {model.removeprefix('asset:')}{tokens}", tokens=tokens, seconds=tokens / 10)
            time.sleep(0.005)
    except KeyboardInterrupt:
        stopped = True
    speaking = False
    tell("end", text="!", tokens=tokens, seconds=tokens / 10, stopped=stopped)


def main(model: str, threads: str) -> None:
    signal.signal(signal.SIGINT, interrupted)
    if model == "asset:mute":
        time.sleep(60)
    if model == "asset:broken":
        tell("error", text="broken has no weights; fetch it again")
        return
    tell("ready", about=f"native, avx512, {threads} threads", engine="native", note="")
    for line in sys.stdin:
        if model == "asset:gone":
            sys.exit(3)
        answer(model, json.loads(line))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Runs an exported graph with ONNX Runtime, in a process that never imports trimtab, and says what it says.

Run as a file: one line of JSON on stdin, {"folder", "ids" (lists of token ids), "logits" (a path)}. Writes float32
[tokens, vocabulary] of all prompts, one after the other, and answers {"opened_by"} on stdout.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime


def main() -> None:
    task = json.loads(sys.stdin.readline())
    told = onnxruntime.SessionOptions()
    told.log_severity_level = 3
    session = onnxruntime.InferenceSession(Path(task["folder"]) / "model.onnx", told, providers=["CPUExecutionProvider"])
    rows = [session.run(["logits"], {"input_ids": np.array([ids], dtype=np.int64)})[0][0] for ids in task["ids"]]
    np.save(task["logits"], np.concatenate(rows))
    print(json.dumps({"opened_by": f"ONNX Runtime {onnxruntime.__version__}"}))


if __name__ == "__main__":
    main()

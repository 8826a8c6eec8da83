"""What GPTQModel's kernels make of a folder. Runs in an environment of its own and imports no trimtab.

Run as a file: one line of JSON on stdin, {"model", "tokens"}. The last line on stdout is a list of {"by", "dtype", "kernel",
"logits", "why"}: logits [1, tokens, vocabulary], or why there are none.
"""

import json
import sys
from typing import Any

import torch
from gptqmodel import GPTQModel
from transformers import AutoModelForCausalLM

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def main() -> None:
    task = json.loads(sys.stdin.readline())
    found = [answered(task, by, dtype) for by in ("transformers", "GPTQModel") for dtype in DTYPES]
    print("\n" + json.dumps(found))


def answered(task: dict[str, Any], by: str, dtype: torch.dtype) -> dict[str, Any]:
    said = {"by": by, "dtype": str(dtype).removeprefix("torch."), "kernel": "-", "logits": None, "why": ""}
    try:
        model = opened(task["model"], by, dtype)
    except NotImplementedError as error:
        return {**said, "why": f"refused: {str(error).splitlines()[0]:.80}"}
    kernels = {type(module).__name__ for module in model.modules()} - {"Linear"}
    said["kernel"] = next(name for name in sorted(kernels) if name.endswith("Linear"))
    with torch.no_grad():
        said["logits"] = model(torch.arange(3, 3 + task["tokens"])[None]).logits.float().tolist()
    return said


def opened(folder: str, by: str, dtype: torch.dtype) -> Any:
    if by == "transformers":
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map="cpu")
    return GPTQModel.load(folder, device="cpu", dtype=dtype).model


if __name__ == "__main__":
    main()

"""Every format that a model can be exported to, in one table."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from trimtab.core.errors import UsageError, did_you_mean
from trimtab.host.export import awq, compressed_tensors, gguf, gguf_layers, gptq, onnx, padded, peft, plain
from trimtab.host.export.contents import Contents, Entry
from trimtab.host.export.stock import stock_config


@dataclass(frozen=True)
class Target:
    """plan: one entry per tensor, for the format that may be rounded to (or None). write: files into a folder.

    requantize: what may be rounded to. remarks: what readers ask for beyond the format. reading: what a reader is told beside
    the files. packages: what has to be installed for the export to be written and opened again. file: of a model that is one
    GGUF file. reader: the script that opens it again, in a process of its own. prepare: changes the model's matrices, not what it
    says, and tells what it did. config: of the shapes that are there then.
    """

    plan: Callable[[Contents, str | None], list[Entry]]
    write: Callable[[Contents, list[Entry], Path], None]
    requantize: Sequence[str]
    opens_with: str
    remarks: Callable[[Contents, list[Entry]], list[str]] = lambda contents, entries: []
    reading: Callable[[Contents], dict[str, Any]] = lambda contents: {}
    packages: Sequence[str] = ()
    file: str | None = None
    reader: str = "reopen_transformers.py"
    prepare: Callable[[PreTrainedModel], list[str]] = lambda model: []
    config: Callable[[PreTrainedModel], Any] = stock_config


TARGETS: dict[str, Target] = {
    "plain": Target(plain.plan, plain.write, plain.REQUANTIZE, "transformers"),
    "padded": Target(plain.plan, plain.write, plain.REQUANTIZE, "transformers", prepare=padded.widen),
    "gguf": Target(
        gguf.plan, gguf.write, gguf.REQUANTIZE, "llama.cpp", gguf.remarks, gguf.reading, file=gguf.FILE, config=gguf_layers.config
    ),
    "compressed-tensors": Target(
        compressed_tensors.plan,
        compressed_tensors.write,
        compressed_tensors.REQUANTIZE,
        "transformers with compressed-tensors, vLLM",
        compressed_tensors.remarks,
        packages=("compressed_tensors",),
    ),
    "gptq": Target(gptq.plan, gptq.write, gptq.REQUANTIZE, "GPTQModel, transformers with it, vLLM", gptq.remarks),
    "awq": Target(awq.plan, awq.write, awq.REQUANTIZE, "GPTQModel, transformers with it, vLLM", awq.remarks),
    "peft": Target(peft.plan, peft.write, peft.REQUANTIZE, "transformers with peft", packages=("peft",)),
    "onnx": Target(onnx.plan, onnx.write, (), "ONNX Runtime", packages=onnx.PACKAGES, reader="reopen_onnx.py"),
}


def target(name: str) -> Target:
    """Raises `UsageError` for a name that is not in `TARGETS`."""
    if name not in TARGETS:
        raise UsageError(f"there is no export to {name!r}{did_you_mean(name, TARGETS)}")
    return TARGETS[name]

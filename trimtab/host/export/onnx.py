"""A graph of ordinary operators for ONNX Runtime and its kin: token ids in, logits out, every matrix unpacked.

`input_ids` int64 [batch, tokens] -> `logits` float32 [batch, tokens, vocabulary]. There is no cache of keys and values, so this
scores and classifies text; to generate, the whole text is read again for every token. All values are float32, which holds
what any format of ours unpacks to; nothing is packed, so the file is as large as the model was. config.json and the tokenizer
lie beside.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from trimtab.core.errors import ModelError, first_line
from trimtab.host.export import plain
from trimtab.host.export.contents import Contents, Entry, Value, dense, spelled

FILE = "model.onnx"
LENGTH = 8  # tokens of the text that the graph is traced with
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
DYNAMIC = torch.export.Dim.DYNAMIC


def plan(contents: Contents, requantize: str | None) -> list[Entry]:
    """One entry per tensor; float32 holds them all."""
    return contents.planned(_entry)


def write(contents: Contents, entries: list[Entry], folder: Path) -> None:
    """Changes the model in memory. Raises `ModelError` for a family that torch cannot write as a graph."""
    plain.unpack(contents, {entry.name: torch.float32 for entry in entries})
    model = contents.model.float().eval()
    shown = torch.arange(2 * LENGTH).view(2, LENGTH) % contents.config.get_text_config().vocab_size
    try:
        with _quiet(), torch.no_grad():
            torch.onnx.export(
                _Logits(model).eval(),
                (shown,),
                folder / FILE,
                input_names=["input_ids"],
                output_names=["logits"],
                dynamic_shapes={"input_ids": {0: DYNAMIC, 1: DYNAMIC}},
                dynamo=True,
                external_data=True,  # one file ends at 2 GB
                verbose=False,
            )
    except (torch.onnx.OnnxExporterError, RuntimeError) as error:
        raise ModelError(f"onnx: torch cannot write {contents.config.model_type} as a graph: {first_line(error):.200}") from error
    contents.config.save_pretrained(folder)
    if contents.tokenizer is not None:
        contents.tokenizer.save_pretrained(folder)


class _Logits(nn.Module):
    """The model with one input and one output."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=input_ids, use_cache=False).logits
        return logits


def _entry(name: str, value: Value) -> Entry:
    values = dense(value)
    return Entry(name, tuple(values.shape), spelled(value), "float32", "exact", 4 * values.numel())


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells of packages that it could use besides."""
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)

"""`trimtab.load`: any model that trimtab can start from, by its name."""

from pathlib import Path

import torch
from transformers import PreTrainedModel

from trimtab.anatomy import Anatomy
from trimtab.host import adapters, checkpoint
from trimtab.host.checkpoint import Tokenizer
from trimtab.host.fingerprint import fingerprint
from trimtab.host.model_assets import resolve_model
from trimtab.host.within import load_within


def load(
    model: str | Path,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    memory: int | str | None = None,
    adapter: str | Path | None = None,
) -> tuple[PreTrainedModel, Tokenizer]:
    """Opens a model in eval mode: a folder, a hub name, an asset, or what another program packed.

    The last may be a GGUF file or a folder of GPTQ, AWQ, compressed-tensors or bitsandbytes; it is read once, into the cache.
    dtype: of what is not packed; float32 on CPU, else as stored.

    memory: bytes that all tensors of the model together may take, or "60MB", or "40%" of what they take in full. Of stacks of
    blocks (bitstack) as many are opened as fit; dtype is then as stored if not given. Matrices that are unpacked for speed are
    not counted (`TRIMTAB_DENSE_CACHE=0` keeps none).

    adapter: a folder that `trimtab.adapt` or peft wrote; what it says is added to the layers of the model, which stay.

    Raises `ModelError` for anything missing, damaged or unknown; `UsageError` where so little memory is not enough.
    """
    folder = checkpoint.local_folder(resolve_model(str(model)))
    opened, tokenizer = (
        checkpoint.load(folder, device, dtype) if memory is None else load_within(memory, str(folder), device, dtype)
    )
    if adapter is not None:
        adapters.read(Anatomy.of(opened), adapter, adapters.Base(str(model), fingerprint(folder)))
    return opened, tokenizer

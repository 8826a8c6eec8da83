"""`trimtab.load`: any model that trimtab can start from, by its name."""

from pathlib import Path

import torch
from transformers import PreTrainedModel

from trimtab.host import checkpoint
from trimtab.host.checkpoint import Tokenizer
from trimtab.host.model_assets import resolve_model


def load(
    model: str | Path, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None
) -> tuple[PreTrainedModel, Tokenizer]:
    """Opens a model in eval mode: a folder, a hub name, an asset, or what another program packed.

    The last may be a GGUF file or a folder of GPTQ, AWQ, compressed-tensors or bitsandbytes; it is read once, into the cache.
    dtype: of what is not packed; float32 on CPU, else as stored. Raises `ModelError` for anything missing, damaged or unknown.
    """
    return checkpoint.load(resolve_model(str(model)), device, dtype)

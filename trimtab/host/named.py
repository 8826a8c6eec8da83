"""Opening a model by any name that users have for it."""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trimtab.host import checkpoint
from trimtab.host.model_assets import resolve_model


def load(
    model: str | Path, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """Opens a folder, a hub name or an asset, checked, in eval mode; the tokenizer is None where there is none.

    dtype: of what is not packed; float32 on CPU, else as stored. Raises `ModelError`, one line that names the file and what
    to do, for anything missing, damaged or out of bounds.
    """
    where: dict[str, Any] = {"device": device, "dtype": dtype}
    return checkpoint.load(resolve_model(str(model)), **where)

"""What calibration passes in bfloat16 spend their time on besides products: attention over whole windows, and grams.

Both are answered for tensors that the compiled kernels take, and declined otherwise, so that callers need no conditions of their
own: float32 never gets here, and without the module nothing changes. TRIMTAB_KERNELS=0 declines everything.
"""

import os
from typing import Any

import torch
from torch import Tensor

from trimtab.kernels.module import available, instruction_set, native

FAST = ("avx2", "avx512")  # elsewhere there are plain loops only, slower than torch
WIDTH = 16  # the width of a head is a multiple of it


def serves_passes() -> bool:
    """Whether passes in bfloat16 use compiled kernels here."""
    return os.environ.get("TRIMTAB_KERNELS") != "0" and available() and instruction_set() in FAST


def add_gram(total: Tensor, x: Tensor) -> bool:
    """total [n, n] float32 += xᵀ x on and below the diagonal, for x [tokens, n] in bfloat16; says whether it was done.

    What is above the diagonal afterwards means nothing. Sums are float32, of products that are exact.
    """
    if not (_plain(x) and x.ndim == 2 and x.stride(1) == 1 and total.is_contiguous() and serves_passes()):
        return False
    native().gram(total.numpy(), _bits(x), instruction_set(), torch.get_num_threads())
    return True


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor | None:
    """What `scaled_dot_product_attention` answers [windows, heads, queries, width] for the same arguments; None if declined.

    Scores and sums are float32; weights are rounded to bfloat16 before they meet the values, as torch does.
    """
    plain = all(_plain(x) and x.ndim == 4 and x.stride(3) == 1 and x.shape[3] % WIDTH == 0 for x in (query, key, value))
    if not plain or attn_mask is not None or dropout_p or not serves_passes():
        return None
    if not _fit(query, key, value, enable_gqa):
        return None
    windows, heads, queries, width = query.shape
    out = query.new_empty(windows, queries, heads, value.shape[3]).transpose(1, 2)  # as torch lays it out
    scale = width**-0.5 if scale is None else scale
    arrays = map(_bits, (query, key, value, out))
    native().attention(*arrays, scale, is_causal, instruction_set(), torch.get_num_threads())
    return out


def _plain(x: Tensor) -> bool:
    """In bfloat16, on the CPU, not empty, and nobody wants a gradient."""
    wanted = torch.is_grad_enabled() and x.requires_grad
    return x.dtype is torch.bfloat16 and x.device.type == "cpu" and x.numel() > 0 and not wanted


def _fit(query: Tensor, key: Tensor, value: Tensor, grouped: bool) -> bool:
    """Whether nothing has to be broadcast, and heads are shared only where that was asked for."""
    heads, kept = query.shape[1], key.shape[1]
    same = len(query) == len(key) == len(value) and key.shape[1:3] == value.shape[1:3] and query.shape[3] == key.shape[3]
    return same and (heads == kept or (grouped and heads % kept == 0))


def _bits(x: Tensor) -> Any:
    """Bfloat16 numbers as NumPy can hold them, without a copy."""
    return x.detach().view(torch.uint16).numpy()

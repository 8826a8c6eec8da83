"""y = x W^T + bias, by a kernel that reads the packed weight, or through `dense()` where there is none.

Compositions (sums, chains, rotations) are followed as `formats.linear` follows them; only the product at their leaves differs.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from trimtab.core.errors import UsageError
from trimtab.core.kinds import LinearWeight
from trimtab.formats import forward
from trimtab.kernels.module import available, instruction_set, native
from trimtab.kernels.repack import has_kernel, repacked

# How activations enter a product with codes: as they are; or as integers, with a scale for every 64 of them at most.
ACTIVATIONS = {"float32": 0, "int8": 1, "int16": 2}


def linear(
    x: Tensor,
    weight: LinearWeight,
    bias: Tensor | None = None,
    *,
    activations: str = "int16",
    instructions: str | None = None,
    threads: int | None = None,
) -> Tensor:
    """x [..., in], weight [out, in], bias [out] or None -> [..., out], in the dtype of x.

    activations: "float32" multiplies the weights that `dense()` defines and differs from it only in the order of summation;
    "int16" rounds each activation to 1/16319 of the largest in its block, "int8" to 1/127. Plain matrices are multiplied as
    with "float32"; several tokens that hold bfloat16 numbers, times a bfloat16 matrix, faster where the processor
    can. instructions: see `instruction_set`. threads: as many as torch uses, unless given; never more than cores.
    Without a kernel, on other devices, in float64 and where a gradient is wanted this is `formats.linear`. Raises `UsageError`.
    """
    if activations not in ACTIVATIONS:
        raise UsageError(f"activations must be one of {', '.join(ACTIVATIONS)}, got {activations!r}")
    if not available():
        return forward.linear(x, weight, bias)
    leaf = partial(
        _leaf,
        digits=ACTIVATIONS[activations],
        instructions=instruction_set(instructions),
        threads=torch.get_num_threads() if threads is None else threads,
    )
    return forward.linear(x, weight, bias, leaf)


def serves(weight: LinearWeight) -> bool:
    """Whether all leaves of this weight have kernels here, so that nothing is unpacked."""
    return available() and all(map(has_kernel, forward.leaves(weight)))


def _leaf(x: Tensor, weight: LinearWeight, bias: Tensor | None, *, digits: int, instructions: str, threads: int) -> Tensor:
    if not has_kernel(weight) or not _plain_call(x, bias):
        return forward.through_dense(x, weight, bias)
    out, in_ = weight.shape
    if x.shape[-1] != in_ or (bias is not None and bias.shape != (out,)):
        given = f"x {list(x.shape)}" + ("" if bias is None else f" and bias {list(bias.shape)}")
        raise UsageError(f"{given} do not fit a weight of [{out}, {in_}]")
    y = torch.empty(x.numel() // in_, out)  # [tokens, out]
    native().linear(repacked(weight), _floats(x.reshape(-1, in_)), y.numpy(), _floats(bias), digits, instructions, threads)
    return y.view(*x.shape[:-1], out).to(x.dtype)


def _plain_call(x: Tensor, bias: Tensor | None) -> bool:
    """Whether kernels can take these activations: on the CPU, not wider than float32, and nobody wants a gradient."""
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return False
    return not (torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)))


def _floats(tensor: Tensor | None) -> Any:
    return None if tensor is None else tensor.detach().float().contiguous().numpy()

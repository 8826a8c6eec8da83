"""Options that several commands share, so that they are spelled and explained once."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.core.errors import UsageError, did_you_mean, first_line

if TYPE_CHECKING:
    import torch

MODEL = "Model folder (also GPTQ, AWQ, compressed-tensors, bitsandbytes), GGUF file, hub name, or asset: smollm2-135m, own-2m "
MODEL += "and others (`trimtab grow --list`)."
Model = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL, show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else there.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Tracebacks, and what the libraries say.")]
Style = Annotated[str, typer.Option("--progress", help="auto: a bar or lines; json: one JSON object a line, on stderr.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16, for what is not compressed. (default: as stored)")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps ... (default: cpu)")]
MEMORY = "At most so much for the tensors, such as 60MB or 40%: of stacks of blocks (bitstack) as many are opened as fit."
Memory = Annotated[str | None, typer.Option(help=MEMORY)]
KV_BITS = "Bits of the keys and values that text is read through, 2 to 8; 16: as they come."
KvBits = Annotated[int, typer.Option("--kv-bits", min=2, max=16, help=KV_BITS)]
Threads = Annotated[int | None, typer.Option(min=1, help="How many threads compute. (default: all cores)")]

DTYPES = ("float32", "bfloat16", "float16")


def dtype_of(name: str | None) -> "torch.dtype | None":
    """Raises `UsageError` for a name that is not in `DTYPES`."""
    import torch

    if name is None:
        return None
    if name not in DTYPES:
        raise UsageError(f"--dtype cannot be {name!r}{did_you_mean(name, DTYPES)}")
    found: torch.dtype = getattr(torch, name)
    return found


def device_of(name: str | None) -> Any:
    """A device that works here, or `UsageError`."""
    import torch

    if name is None:
        return None
    try:
        torch.empty(1, device=name)
    # Which exception a missing device raises depends on the device.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"--device {name!r} cannot be used here: {first_line(error)}") from error
    return torch.device(name)

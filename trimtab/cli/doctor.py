"""`trimtab doctor`: everything about a machine that changes what trimtab does or how fast. For bug reports, too."""

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import typer

from trimtab import __version__
from trimtab.cli import show
from trimtab.cli.options import Json, Verbose

PACKAGES = ("torch", "transformers", "safetensors", "accelerate", "gguf", "peft", "datasets", "numpy")
FLAGS = ("avx2", "avx512", "avx_vnni", "amx", "f16c", "neon", "asimd", "sve", "i8mm", "bf16")
VARIABLES = (
    "TRIMTAB_CACHE",
    "TRIMTAB_CPU",
    "TRIMTAB_DEBUG",
    "TRIMTAB_DENSE_CACHE",
    "TRIMTAB_KERNELS",
    "TRIMTAB_LLAMA_PYTHON",
    "XDG_CACHE_HOME",
    "TMPDIR",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "HF_ENDPOINT",
    "HF_HUB_DISABLE_PROGRESS_BARS",
    "HF_TOKEN",
    "TRANSFORMERS_OFFLINE",
    "TRANSFORMERS_VERBOSITY",
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "TQDM_DISABLE",
    "NO_COLOR",
)
SECRET = ("HF_TOKEN",)


def register(app: typer.Typer) -> None:
    app.command("doctor")(doctor)


def doctor(json: Json = False, verbose: Verbose = False) -> None:
    """Say what this machine offers: processor, memory, disk, versions, cache, variables that act."""
    # First, because importing libraries may set variables of its own.
    acting = variables()
    found = {"trimtab": __version__, **_machine(), **_torch(), "cache": _cache(), "versions": versions(), "variables": acting}
    if json:
        show.as_json(found)
    else:
        show.table(("what", "value"), [(name, _spelled(name, value)) for name, value in found.items()])


def variables() -> dict[str, str]:
    """The environment variables that act, with their values; of secrets only that they are there."""
    return {name: "(set)" if name in SECRET else os.environ[name] for name in VARIABLES if os.environ.get(name)}


def versions() -> dict[str, str | None]:
    return {"python": platform.python_version(), **{package: _version(package) for package in PACKAGES}}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _machine() -> dict[str, Any]:
    import psutil

    model, flags = processor()
    memory = psutil.virtual_memory()
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": model,
        "flags": flags,
        "cores": psutil.cpu_count(logical=False),
        "threads": psutil.cpu_count(),
        "memory": memory.total,
        "memory_free": memory.available,
    }


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[str, list[str]]:
    """Its name, and those of its abilities that matter here; none are known where the system has no /proc/cpuinfo."""
    if not cpuinfo.exists():
        return platform.processor() or "unknown", []
    pairs = (line.partition(":") for line in cpuinfo.read_text(encoding="utf-8").splitlines())
    facts: dict[str, str] = {}
    for name, _, value in pairs:
        facts.setdefault(name.strip().lower(), value.strip())
    flags = facts.get("flags", facts.get("features", "")).split()
    return facts.get("model name", platform.machine()), sorted(f for f in flags if any(known in f for known in FLAGS))


def _torch() -> dict[str, Any]:
    import torch

    from trimtab import kernels
    from trimtab.tensors.products import fast_products

    with fast_products() as fast:
        return {
            "torch_threads": torch.get_num_threads(),
            "torch_capability": torch.backends.cpu.get_cpu_capability(),
            "accelerators": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
            "fast_float32_products": fast,
            "native_kernels": kernels.describe(),
        }


def _cache() -> dict[str, Any]:
    from trimtab.data.assets import cache_root

    root = cache_root()
    there = next(path for path in (root, *root.parents) if path.exists())
    folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    holds = {folder.name: sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) for folder in folders}
    return {"folder": str(root), "disk_free": shutil.disk_usage(there).free, "holds": holds}


def _spelled(name: str, value: Any) -> str:
    if name == "cache":
        holds = [f"{folder}, {show.size(count)}" for folder, count in value["holds"].items()]
        return "\n".join([f"{value['folder']}, {show.size(value['disk_free'])} free", *holds])
    if isinstance(value, dict):
        return "\n".join(f"{key} {item or '-'}" for key, item in value.items()) or "-"
    if isinstance(value, list):
        return " ".join(value) or "-"
    if name.startswith("memory"):
        return show.size(value)
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)

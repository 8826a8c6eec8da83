"""What numbers and models were made with: commit, versions, machine. No names of people or places."""

import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

WRITTEN = (
    "--",
    ":(top)",
    ":(top,exclude)claims",
    ":(top,exclude)benchmarks/*.jsonl",
    ":(top,exclude)faults",
)  # results do not change the code
PACKAGES = ("trimtab", "torch", "transformers")


def provenance() -> dict[str, Any]:
    """JSON values: commit, versions by package, machine, date (UTC)."""
    return {
        "commit": commit(),
        "versions": versions(),
        "machine": machine(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def commit() -> str:
    """The commit the numbers belong to, with + if the tree had changes; "unknown" outside of a checkout."""
    here = Path(__file__).parent
    try:
        name, changed = _git(here, "rev-parse", "--short", "HEAD"), _git(here, "status", "--porcelain", "-uno", *WRITTEN)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return name + ("+" if changed else "")


def _git(place: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=place, capture_output=True, text=True, check=True).stdout.strip()


def machine() -> dict[str, Any]:
    """What the numbers were measured on, without names."""
    # Here, because folders are checked with this module before anything heavy is imported.
    import torch

    return {
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "cores": torch.get_num_threads(),
        "arch": platform.machine(),
        "torch": torch.__version__,
    }


def versions() -> dict[str, str]:
    """Of the packages that decide what a model says."""
    return {package: _version(package) for package in PACKAGES}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"

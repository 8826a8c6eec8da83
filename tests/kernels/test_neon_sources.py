"""The NEON kernels, on machines without ARM: they compile, where there is a cross compiler, for both sets of instructions.

`make native-test-neon` builds the C++ tests for ARM and runs them under emulation, which takes minutes.
"""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[2] / "native"
COMPILER = "g++" if platform.machine() in ("aarch64", "arm64") else "aarch64-linux-gnu-g++"
SOURCES = {
    "neon/kernels.cc": "-march=armv8-a",
    "neon/dotprod.cc": "-march=armv8.2-a+dotprod",
    "neon/functions.cc": "-march=armv8-a",
}


@pytest.mark.parametrize("source", SOURCES)
def test_it_compiles(source):
    if shutil.which(COMPILER) is None:
        pytest.skip(f"there is no {COMPILER} (Debian: apt-get install g++-aarch64-linux-gnu)")
    words = [COMPILER, "-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", "-DTRIMTAB_ARM", f"-I{NATIVE / 'include'}"]
    words += [SOURCES[source], str(NATIVE / "src" / source)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

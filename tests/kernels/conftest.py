"""Tests of kernels run where the compiled module is; those of the way around it run everywhere."""

import platform

import pytest

from trimtab import kernels

ARM = platform.machine() in ("aarch64", "arm64")


@pytest.fixture(params=["scalar", "neon", "dotprod"] if ARM else ["scalar", "avx2", "avx512"])
def instructions(request):
    """Every instruction set in turn, where this processor has it."""
    if not kernels.available():
        pytest.skip(kernels.describe())
    if request.param not in kernels.instruction_sets():
        pytest.skip(f"this processor has no {request.param}")
    return request.param


@pytest.fixture
def compiled():
    """The compiled module itself."""
    from trimtab.kernels.module import native

    if not kernels.available():
        pytest.skip(kernels.describe())
    return native()

"""The switch is put back whatever happens inside, and products inside are float32 products."""

import pytest
import torch

from trimtab.tensors.products import FLOAT32_ERROR, fast_products

SWITCH = torch.backends.mkldnn.matmul


@pytest.mark.parametrize("before", ["none", "ieee", "bf16"])
def test_restores_the_switch(before: str) -> None:
    outside = SWITCH.fp32_precision
    try:
        SWITCH.fp32_precision = before
        with fast_products() as taken:
            assert SWITCH.fp32_precision == ("bf16" if taken else before)
        assert SWITCH.fp32_precision == before
        with pytest.raises(KeyError), fast_products():
            raise KeyError
        assert SWITCH.fp32_precision == before
    finally:
        SWITCH.fp32_precision = outside


@pytest.mark.parametrize("tokens", [1, 7, 300])
def test_products_stay_float32(tokens: int) -> None:
    draw = torch.Generator().manual_seed(3)
    x, weight = torch.randn(tokens, 320, generator=draw), torch.randn(200, 320, generator=draw)
    exact = x.double() @ weight.double().T
    with fast_products():
        made = x @ weight.T
    assert made.dtype == torch.float32
    assert (made - exact).norm() / exact.norm() < FLOAT32_ERROR
    assert (x.bfloat16() @ weight.bfloat16().T - exact).norm() / exact.norm() > 10 * FLOAT32_ERROR

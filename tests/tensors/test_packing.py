"""Packing is exact and its bit order is the documented one, for every width and every ragged end."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.tensors.packing import pack, packed_width, unpack

BITS = range(1, 9)


def codes_of(rows: int, n: int, bits: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2**bits, (rows, n), dtype=torch.uint8, generator=generator)


@pytest.fixture
def poisoned(monkeypatch):
    """`torch.empty` hands out rubbish, so a byte that is never written shows."""
    monkeypatch.setattr(torch, "empty", lambda *size, dtype, device=None: torch.full(size, 0xA5, dtype=dtype))


@settings(max_examples=150, deadline=None)
@given(bits=st.integers(1, 8), rows=st.integers(1, 5), n=st.integers(1, 40), seed=st.integers(0, 2**32))
def test_round_trip(bits, rows, n, seed):
    codes = codes_of(rows, n, bits, seed)
    packed = pack(codes, bits)
    assert packed.shape == (rows, packed_width(n, bits))
    assert torch.equal(unpack(packed, bits, n), codes)


@settings(max_examples=100, deadline=None)
@given(bits=st.integers(1, 8), row=st.lists(st.integers(0, 255), min_size=1, max_size=20))
def test_stream_is_little_endian(bits, row):
    row = [c % 2**bits for c in row]
    stream = sum(c << (i * bits) for i, c in enumerate(row))
    expected = list(stream.to_bytes(packed_width(len(row), bits), "little"))
    assert pack(torch.tensor([row], dtype=torch.uint8), bits)[0].tolist() == expected


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("n", [1, 7, 8, 33])
def test_every_byte_is_written(bits, n, poisoned):
    codes = codes_of(3, n, bits)
    assert torch.equal(unpack(pack(codes, bits), bits, n), codes)


@pytest.mark.parametrize("bits", BITS)
def test_transposed_codes_pack_like_their_copy(bits):
    codes = codes_of(16, 24, bits).T
    assert not codes.is_contiguous()
    assert torch.equal(pack(codes, bits), pack(codes.contiguous(), bits))
    assert torch.equal(unpack(pack(codes.contiguous(), bits).T.contiguous().T, bits, 16), codes)


@pytest.mark.parametrize("bits", BITS)
def test_result_shares_no_memory(bits):
    codes = codes_of(2, 8, bits)
    packed = pack(codes, bits)
    before = packed.clone()
    codes.fill_(0)
    assert torch.equal(packed, before)
    unpack(packed, bits, 8).fill_(0)
    assert torch.equal(packed, before)


@pytest.mark.parametrize("bits", range(1, 8))
def test_codes_that_do_not_fit_are_refused(bits):
    with pytest.raises(ValueError, match=f"do not fit in {bits} bits"):
        pack(torch.tensor([[0, 2**bits]], dtype=torch.uint8), bits)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pack(torch.zeros(1, 2, dtype=torch.int64), 3), "uint8"),
        (lambda: pack(torch.zeros(2, dtype=torch.uint8), 3), "rows"),
        (lambda: pack(torch.zeros(1, 2, dtype=torch.uint8), 0), "1 to 8"),
        (lambda: pack(torch.zeros(1, 2, dtype=torch.uint8), 9), "1 to 8"),
        (lambda: unpack(torch.zeros(1, 2, dtype=torch.uint8), 3, 6), "take 3 bytes"),
        (lambda: unpack(torch.zeros(1, 2, dtype=torch.int32), 3, 5), "uint8"),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()

"""Speeds with a clock that stands still except where the model works."""

import math

import pytest
import torch

from trimtab.core.errors import UsageError
from trimtab.host.compress import compress
from trimtab.measure import speed as room
from trimtab.measure.speed import decode_speed, kernels, prefill_speed
from trimtab.testing.tiny import tiny


@pytest.fixture
def clocked(monkeypatch: pytest.MonkeyPatch):
    """A model whose forward pass takes 1 s for each token that it is given, on a clock of its own."""
    model, now = tiny("llama"), [0.0]
    model.register_forward_pre_hook(
        lambda _m, _a, kwargs: now.__setitem__(0, now[0] + kwargs["input_ids"].numel()), with_kwargs=True
    )
    monkeypatch.setattr(room, "perf_counter", lambda: now[0])
    return model


def prompt(rows: int = 1, length: int = 6) -> torch.Tensor:
    return torch.randint(3, 97, (rows, length), generator=torch.Generator().manual_seed(0))


def test_decoding_does_not_count_the_prefill(clocked) -> None:
    found = decode_speed(clocked, prompt(), new_tokens=5, repeats=3)
    assert (found.value, found.stderr, found.n) == (1.0, 0.0, 3 * 4)
    assert found.setting["prompt"] == 6
    assert found.setting["new_tokens"] == 5
    assert {"threads", "device", "dtype", "repeats", "batch"} <= set(found.setting)
    assert found.setting["cpu"] == torch.backends.cpu.get_cpu_capability()
    assert found.setting["kernel"] == "torch"


def test_tokens_of_all_rows_count(clocked) -> None:
    found = decode_speed(clocked, prompt(rows=3), new_tokens=5, repeats=1)
    assert (found.value, found.n) == (1.0, 12)  # 3 tokens in the 3 s that a step of 3 rows takes
    assert math.isnan(found.stderr)


def test_prefill_is_the_time_to_the_first_token(clocked) -> None:
    found = prefill_speed(clocked, prompt(length=9), repeats=2)
    assert (found.value, found.n) == (1.0, 18)


def test_the_first_run_and_outliers_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    durations = iter([100.0, 1.0, 1.0, 50.0, 1.0, 1.0])
    monkeypatch.setattr(room, "_run", lambda *_: [0.0, 0.0, next(durations)])
    found = decode_speed(tiny("llama"), prompt(), new_tokens=2, repeats=5)
    assert found.value == 1.0
    assert found.stderr > 0


def test_a_model_that_likes_to_stop_is_kept_going() -> None:
    model = tiny("llama")
    first = model.generate(prompt(), max_new_tokens=1, do_sample=False)[0, -1].item()
    model.generation_config.eos_token_id = first
    assert decode_speed(model, prompt(), new_tokens=4, repeats=1).n == 3


def test_one_token_is_no_decoding() -> None:
    with pytest.raises(UsageError, match="new_tokens >= 2"):
        decode_speed(tiny("llama"), prompt(), new_tokens=1)
    with pytest.raises(UsageError, match="repeats must be at least 1"):
        prefill_speed(tiny("llama"), prompt(), repeats=0)


def test_what_computes_the_linears_is_named() -> None:
    model = tiny("llama", num_hidden_layers=1)
    compress(model, "rtn(bits=4, group_size=32)")
    packed = [module for module in model.modules() if hasattr(module, "weight_value")]
    assert kernels(model) == "torch, unpacked"
    packed[0].kernel = "grouped4 avx2"
    assert kernels(model) == f"torch, unpacked ({len(packed) - 1} of {len(packed)}); grouped4 avx2 (1 of {len(packed)})"

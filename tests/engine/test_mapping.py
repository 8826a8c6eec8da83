"""The planner: cycles as counted one by one, times no less than the least possible, buckets as found by trying all."""

import json
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path

import pytest
import torch

from trimtab.anatomy import Anatomy
from trimtab.core.accelerator import U280, read_accelerator
from trimtab.core.errors import UsageError
from trimtab.core.mapping import (
    DENSE,
    Block,
    Product,
    as_if,
    block_cost,
    buckets,
    chain_cycles,
    model_cost,
    padded,
    simulated_cycles,
)
from trimtab.engine.probe import probe
from trimtab.formats import NM, Chain, Dense, Sum
from trimtab.formats.mapped import mapped, products
from trimtab.methods.probe.flightllm import FlightLLM
from trimtab.tensors.masks import Pattern, keep_top
from trimtab.testing.tiny import tiny, tokens

BLOCK = Block(
    tuple(Product(name, out, in_, 8.0) for name, out, in_ in (("q", 64, 64), ("k", 32, 64), ("o", 64, 64), ("up", 256, 64))),
    64,
    32,
    7,
    64,
)
HEAD = Product("head", 512, 64, 8.0)


def drawn(*size: int) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 8), (5, 8), (12, 16)])
def test_cycles_are_those_of_a_simulation(n: int, m: int) -> None:
    for rows, chains, lanes in product((1, 7, 12), (1, 4, 5, 100), (1, 2, 4, 16)):
        keep = keep_top(drawn(rows, 48), 0.0, Pattern(n, m)).tolist()
        assert chain_cycles(rows * 48 // m, n, chains, lanes) == simulated_cycles(keep, m, chains, lanes)


def test_dense_rows_fill_all_lanes() -> None:
    for rows, chains, lanes in product((1, 9), (1, 4), (1, 6, 16)):
        counted = simulated_cycles([[True] * 48] * rows, lanes, chains, lanes)
        assert chain_cycles(rows * 48 // lanes, lanes, chains, lanes) == counted == -(-rows * 48 // lanes // chains)


def test_a_mask_without_a_pattern_waits_for_its_fullest_group() -> None:
    keep = [[True] * 4 + [False] * 4, [True, False] * 4, [False] * 8]
    assert simulated_cycles(keep, 4, 3, 4) == 1
    assert simulated_cycles(keep, 4, 3, 1) == 4
    assert simulated_cycles(keep, 4, 2, 1) == 4 + 2
    assert simulated_cycles(keep, 4, 1, 2) == 2 + 1 + 1


@pytest.mark.parametrize("tokens", [1, 5, 64])
def test_every_idea_saves_and_none_beats_the_least_time(tokens: int) -> None:
    block = as_if(BLOCK, 4.0, (2, 4))
    stages = [(block, True), (block, False), (as_if(block, pattern=DENSE), False), (as_if(block, 8.0, DENSE), False)]
    costs = [block_cost(one, U280, tokens, 128, fused) for one, fused in stages]
    assert costs[0].joules < costs[1].joules < costs[2].joules < costs[3].joules
    assert costs[0].seconds < costs[1].seconds <= costs[2].seconds <= costs[3].seconds
    assert all(cost.bound <= cost.seconds for cost in costs)


def test_a_large_model_is_read_as_fast_as_the_memory_allows() -> None:
    """Decoding is bound by reading: 7 billion weights in 4 bits at 460 GB/s, within a fifth of what that takes."""
    large = Block(tuple(Product(str(i), 4096, 4096 * 4, 4.0) for i in range(3)), 4096, 4096, 7, 4096)
    cost = model_cost([large] * 32, Product("head", 32000, 4096, 4.0), U280, 1, 64, True)
    least = (32 * 3 * 4096 * 4096 * 4 + 32000 * 4096) / 2 / 460e9
    assert least < cost.seconds < 1.2 * least


def test_what_does_not_fit_on_the_chip_is_moved() -> None:
    small = replace(U280, on_chip_mb=0.0)
    assert block_cost(BLOCK, small, 4, 64, True).bytes > block_cost(BLOCK, U280, 4, 64, True).bytes
    assert block_cost(BLOCK, small, 4, 64, True).bytes < block_cost(BLOCK, small, 4, 64, False).bytes


def test_work_is_by_hand() -> None:
    device = replace(U280, latency_us=0.0, idle_watts=0.0, small_bytes=0, pj_per_mac=1.0, pj_per_byte=0.0)
    only = Block((Product("up", 256, 64, 8.0),), 64, 32, 0, 64)
    cost = block_cost(only, device, 3, 10, True)
    assert cost.joules == pytest.approx(1e-12 * (3 * 256 * 64 + 2 * 64 * (8 + 9 + 10)))
    assert cost.bytes == 256 * 64 + 2 * 32 * 13
    scores = 2 * 64 * (8 + 9 + 10) / (9024 * 2 * 225e6)
    assert cost.seconds == pytest.approx(max(256 * 64 / 460e9, 3 / 225e6) + max(2 * 32 * 13 / 460e9, scores))


@pytest.mark.parametrize("count", [1, 2, 3, 5, 9])
def test_buckets_are_the_best_of_all(count: int) -> None:
    lengths = [1, 2, 4, 7, 8, 12, 13, 20]
    for cost in (lambda n: n * n + 5.0, lambda n: 3.0 * n, lambda n: 1.0):
        chosen = buckets(lengths, cost, count)
        every = [[*some, lengths[-1]] for size in range(min(count, len(lengths))) for some in combinations(lengths[:-1], size)]
        assert len(chosen) <= count
        assert chosen[-1] == 20
        assert padded(lengths, chosen, cost) == pytest.approx(min(padded(lengths, one, cost) for one in every))
    assert buckets([5], float, 3) == [5]
    with pytest.raises(ValueError, match="0 buckets"):
        buckets(lengths, float, 0)


def test_matrices_are_products_with_their_bits_and_patterns() -> None:
    sparse = NM.of(drawn(8, 16), keep_top(drawn(8, 16).abs(), 0.0, Pattern(2, 4)), 2, 4)
    whole = Sum((sparse, Chain((Dense(drawn(8, 2)), Dense(drawn(2, 16))))))
    found = list(products("up", whole))
    assert [(p.out, p.in_, p.pattern) for p in found] == [(8, 16, (2, 4)), (8, 2, DENSE), (2, 16, DENSE)]
    assert sum(p.bytes for p in found) == pytest.approx(whole.bits * 8 * 16 / 8)


def test_a_model_is_read() -> None:
    anatomy = Anatomy.of(tiny("llama"))
    block = mapped({s: anatomy.weight(s) for s in anatomy.block_sites(0)}, 2, 64)
    assert [p.out for p in block.products] == [s.shape[0] for s in anatomy.block_sites(0)]
    key = next(s for s in anatomy.block_sites(0) if s.role == "k")
    assert (block.query_width, block.key_width, block.aside) == (64, key.shape[0], 7)
    fused = Anatomy.of(tiny("phi3"))
    assert mapped({s: fused.weight(s) for s in fused.block_sites(0)}, 2, 64).key_width < 64
    experts = Anatomy.of(tiny("mixtral"))
    assert len(mapped({s: experts.weight(s) for s in experts.block_sites(0)}, 2, 64).products) == len(experts.block_sites(0))


def test_the_probe_says_what_each_idea_is_worth(tmp_path: Path) -> None:
    (tmp_path / "own.json").write_text(json.dumps({**vars(U280), "name": "own", "gb_per_s": 1.0}))
    method = FlightLLM(bits=4.0, pattern="2:4", accelerator=str(tmp_path / "own.json"))
    (findings,) = probe(tiny("llama"), tokens(tiny("llama"), 2, 16), [method], 0)
    values = {f.measurements[0].name: [m.value for m in f.measurements] for f in findings}
    assert len(values) == 8
    for quantity in ("seconds", "joules"):
        stages = [values[quantity + name] for name in ("", ", unfused", ", dense", ", 8 bits")]
        assert all(a < b for a, b in zip(stages[0], stages[-1], strict=True))
    assert "on own, simulated" in findings[0].implies


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lane": 3}, "no field 'lane'.*lanes"),
        ({"chains": 1.5}, "chains must be a whole number"),
        ({"clock_mhz": 0}, "clock_mhz must be a number above 0"),
        ({"gb_per_s": "fast"}, "gb_per_s must be a number"),
        ({"name": 3}, "name must be text"),
    ],
)
def test_descriptions_that_cannot_be_are_refused(tmp_path: Path, change: dict, said: str) -> None:
    (tmp_path / "one.json").write_text(json.dumps({**vars(U280), **change}))
    with pytest.raises(UsageError, match=said):
        read_accelerator(tmp_path / "one.json")


def test_files_that_are_no_description_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "one.json"
    for text, said in (("{", "cannot be read"), ("[]", "must hold one object"), ('{"name": "x"}', "lacks clock_mhz")):
        file.write_text(text)
        with pytest.raises(UsageError, match=said):
            read_accelerator(file)
    with pytest.raises(UsageError, match="cannot be read"):
        read_accelerator(tmp_path / "none.json")

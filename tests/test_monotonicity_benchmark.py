"""The benchmark of error monotonicity: blocks are really left out, and the worst contradiction is the one that is found."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import monotonicity

from trimtab.anatomy import Anatomy
from trimtab.core.edits import DropBlock
from trimtab.engine.apply import apply
from trimtab.testing.tiny import tiny, tokens


def test_the_worst_contradiction_is_found():
    sums, real = [1.0, 2.0, 3.0, 4.0], [10.0, 2.0, 30.0, 5.0]
    assert monotonicity.contradiction(sums, real) == (2, 3)  # six times, where the first and second are five times apart
    assert monotonicity.inverted(sums, real) == pytest.approx(3 / 6)
    with pytest.raises(SystemExit, match="always"):
        monotonicity.contradiction([1.0, 2.0], [1.0, 2.0])


def test_blocks_that_are_left_out_are_blocks_that_are_not_there():
    model = tiny("llama")
    ids = tokens(model)
    blocks = Anatomy.of(model).blocks
    with torch.no_grad():
        whole = model(input_ids=ids, use_cache=False).logits
        with monotonicity.left_out([blocks[1], blocks[2]]):
            found = model(input_ids=ids, use_cache=False).logits
        assert torch.equal(model(input_ids=ids, use_cache=False).logits, whole)
        apply(Anatomy.of(model), [DropBlock(1), DropBlock(2)])
        torch.testing.assert_close(found, model(input_ids=ids, use_cache=False).logits)


def test_what_is_lost_is_the_divergence():
    model = tiny("llama")
    windows = tokens(model, batch=2)
    blocks = Anatomy.of(model).blocks
    nothing, some = monotonicity.lost(model, blocks, [(), (0,)], windows)
    assert nothing == pytest.approx([0.0, 0.0], abs=1e-6)
    with torch.no_grad(), monotonicity.left_out([blocks[0]]):
        other = model(input_ids=windows, use_cache=False).logits.log_softmax(-1)
    with torch.no_grad():
        one = model(input_ids=windows, use_cache=False).logits.log_softmax(-1)
    assert some == pytest.approx((one.exp() * (one - other)).sum(-1).mean(-1).tolist(), rel=1e-4)

"""Exposure is log2 of a rank; what a model was trained on is exposed, less so the more noise there was."""

from math import log2

import pytest
import torch

from trimtab.anatomy import Anatomy
from trimtab.core.errors import ModelError
from trimtab.core.expression import make
from trimtab.core.recipe import Where
from trimtab.core.seeds import Seeds
from trimtab.engine import adapting
from trimtab.formats.deltas import LowRankDelta
from trimtab.host.pretrain import Course
from trimtab.host.private import Privacy, tune_privately
from trimtab.measure.exposure import DIGITS, _exposure, canaries, exposures, row_losses, unseen
from trimtab.testing.folders import byte_tokenizer
from trimtab.testing.tiny import tiny

OTHERS = 63


def test_exposure_is_by_rank() -> None:
    losses = torch.tensor([2.0, 1.0, 3.0, 2.0, 5.0, 6.0, 7.0, 8.0])
    assert _exposure(losses) == log2(8) - log2(3)
    assert _exposure(losses - 2 * (torch.arange(8) == 0)) == 3.0
    assert unseen(1) == 0.5
    with pytest.raises(ModelError, match="not finite"):
        _exposure(losses * torch.nan)


def test_canaries_differ_in_the_secret_alone() -> None:
    tokenizer = byte_tokenizer()
    one, other = canaries(2, tokenizer, Seeds(0), others=5)
    texts = {tokenizer.decode(row.ids) for row in (one.row, *one.others)}
    assert len(texts) == 6
    assert len({text[: -DIGITS - len("<eos>")] for text in texts}) == 1
    assert tokenizer.decode(one.row.ids)[:30] != tokenizer.decode(other.row.ids)[:30]
    assert int(one.row.learned.sum()) == 1 + DIGITS + 1


def test_losses_of_rows_are_the_models_own() -> None:
    model = tiny("llama", vocab_size=260)
    (canary,) = canaries(1, byte_tokenizer(), Seeds(0), others=2)
    loss = model(input_ids=canary.row.ids[None], labels=canary.row.labels[None]).loss.detach()
    found = row_losses(model, [canary.others[0], canary.row], at_once=1)[1]
    assert float(found) == pytest.approx(float(loss) * int(canary.row.learned.sum()), rel=1e-5)


def trained_with(noise: float) -> float:
    """Mean exposure of twelve canaries."""
    model = tiny("llama", vocab_size=260, num_hidden_layers=2)
    planted = canaries(12, byte_tokenizer(), Seeds(0), OTHERS)
    found = adapting.attach(Anatomy.of(model), make("lora", {"rank": 8}), Where(), Seeds(0))
    deltas = [delta for delta in found.values() if isinstance(delta, LowRankDelta)]
    course = Course(steps=40, batch=6, length=64, learning_rate=1e-2, decay=0.0)
    privacy = Privacy(noise=noise, bound=1.0, epsilon=None)
    tune_privately(model, deltas, [canary.row for canary in planted], course, privacy, Seeds(0).at("noise"))
    return float(exposures(model, planted).mean())


def test_exposure_falls_with_noise() -> None:
    pytest.importorskip("opacus")
    little, much = trained_with(1e-2), trained_with(20.0)
    assert little > 4.5, "of 6 bits"
    assert abs(much - unseen(OTHERS)) < 1.2, "twelve canaries, of which each has a deviation of about 1.4 bits"

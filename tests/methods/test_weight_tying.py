"""Weight tying: what was tied all along stays the same function, and what is tied now is an ordinary tied model."""

import pytest
import torch

from trimtab.anatomy import Anatomy
from trimtab.core.errors import ModelError
from trimtab.core.recipe import Recipe
from trimtab.engine.apply import apply
from trimtab.engine.run import run
from trimtab.engine.teaching import learning
from trimtab.host.school import school
from trimtab.methods import WeightTying
from trimtab.methods.tune import weight_tying
from trimtab.testing.roundtrip import logits, ran, reopened, shown
from trimtab.testing.tiny import tiny


class _Seen:
    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)


def untied(family: str) -> torch.nn.Module:
    """Whose head is its embedding, but for the size of channels."""
    model = tiny(family, tie_word_embeddings=False)
    sizes = torch.randn(64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        model.get_output_embeddings().weight.copy_(model.get_input_embeddings().weight * sizes)
    return model


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "qwen3", "gemma2"])
def test_what_was_the_same_but_for_the_size_of_channels_says_the_same(family):
    model = untied(family)
    before, anatomy = logits(model), Anatomy.of(model)
    numbers = sum(p.numel() for p in model.parameters())
    pupil = WeightTying(start="input").begin(anatomy, _Seen())
    with learning(anatomy, pupil):
        torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-4)
    apply(anatomy, pupil.edits())
    after = Anatomy.of(model)
    assert after.tied
    assert numbers - sum(p.numel() for p in model.parameters()) == pupil.notes()["weights_gone"] == 97 * 64
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-4)
    again = reopened(model)
    assert Anatomy.of(again).tied
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("start", ["output", "input", "average"])
def test_the_head_is_as_near_as_channels_can_be_stretched(start):
    draw = torch.Generator().manual_seed(0)
    entering, leaving = (torch.randn(40, 6, generator=draw) * size for size in (0.1, 3.0))
    table = weight_tying.begun(entering, leaving, start)
    found = weight_tying.stretch(table, leaving)
    off = [(table * found * (1 + change) - leaving).square().sum() for change in (-0.01, 0.0, 0.01)]
    assert off[1] == min(off)
    if start == "output":
        torch.testing.assert_close(table * found, leaving)
        torch.testing.assert_close(table.norm(), entering.norm())
    assert torch.equal(weight_tying.stretch(torch.zeros(4, 2), torch.ones(4, 2)), torch.ones(2))


def test_one_matrix_learns_from_both_ends():
    model = tiny("llama")
    anatomy = Anatomy.of(model)
    pupil = WeightTying(rank=2).begin(anatomy, _Seen())
    ids = torch.tensor([[5, 6, 7]])
    with learning(anatomy, pupil), torch.enable_grad():
        model(ids, use_cache=False).logits[0, -1, 9].backward()
        rows = pupil.stretched.table.weight.grad.abs().sum(1).nonzero().flatten()
    assert rows.tolist() == [5, 6, 7, 9]  # words that were read, and the one that was to be said
    trained = sum(p.numel() for p in pupil.parameters() if p.requires_grad)
    assert trained == WeightTying(rank=2).trained(anatomy)


def test_the_loss_falls_and_the_pull_pulls():
    _, bench = ran("llama", Recipe((WeightTying(steps=12, windows=4, learning_rate=0.01),)))
    notes = bench.receipts[0].notes
    assert notes["last_loss"] < notes["first_loss"]
    pupil = WeightTying(pull=2.0).begin(Anatomy.of(tiny("llama")), _Seen())
    torch.testing.assert_close(pupil.penalty(), 2 * pupil.stretched.stretch.norm())
    assert WeightTying().begin(Anatomy.of(tiny("llama")), _Seen()).penalty() is None


def test_what_is_tied_is_refused():
    model = tiny("qwen3", tie_word_embeddings=True)
    before = logits(model)
    with pytest.raises(ModelError, match=r"weight_tying: .* are one matrix already; leave this step out"):
        run(model, Recipe((WeightTying(),)), shown(model), school=school)
    assert torch.equal(logits(model), before)


def test_what_pat_and_slicegpt_untied_is_tied_again():
    for first in ("pat(steps=3, windows=2)", "slicegpt(sparsity=0.25)"):
        model, _ = ran("llama", Recipe.of(f"{first} -> weight_tying(steps=3, windows=2)"))
        assert Anatomy.of(model).tied
        assert torch.equal(logits(reopened(model)), logits(model))

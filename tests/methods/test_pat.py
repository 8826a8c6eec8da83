"""PAT: the mask begins open and hardens, and what is merged and cut says what the modules said."""

import pytest
import torch

from trimtab.anatomy import Anatomy
from trimtab.core.errors import ModelError, UsageError
from trimtab.core.recipe import Recipe
from trimtab.core.registry import get
from trimtab.core.seeds import Seeds
from trimtab.engine.apply import apply
from trimtab.engine.run import run
from trimtab.engine.teaching import learning
from trimtab.host.school import school
from trimtab.methods.tune.pat import Mask, softened
from trimtab.testing.roundtrip import logits, ran, shown
from trimtab.testing.tiny import tiny

Pat = get("pat")


class _Seen:
    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "smollm3"])
def test_what_is_merged_and_cut_says_what_the_modules_said(family):
    model = tiny(family, rms_norm_eps=1e-12)  # what norms add to the mean square weighs a little less afterwards
    anatomy = Anatomy.of(model)
    pupil = Pat(module_rank=4).begin(anatomy, _Seen())
    with torch.no_grad():
        for place, learner in enumerate(pupil.turned):
            noise = Seeds(0).at(place)
            learner.left.copy_(0.1 * torch.randn(learner.left.shape, generator=noise))
            learner.scale.copy_(1 + 0.1 * torch.randn(learner.scale.shape, generator=noise))
        pupil.mask.logits.copy_(torch.randn(64, generator=Seeds(1).at("logits")))
    pupil.mask.settle()
    with learning(anatomy, pupil), torch.no_grad():
        before = logits(model)
    apply(anatomy, pupil.edits())
    assert model.get_input_embeddings().weight.shape[1] == 48
    torch.testing.assert_close(logits(model), before, rtol=1e-5, atol=1e-5)


def test_the_mask_begins_near_one_and_hardens():
    logits_ = torch.tensor([-0.5, -0.1, 0.0, 0.1, 0.5])
    assert torch.allclose(softened(torch.zeros(5), 0.0, 1000), torch.full((5,), 0.999))
    early, late = softened(logits_, 0.1, 1000), softened(logits_, 0.97, 1000)
    assert float(early.min()) > 0.55
    assert float(late[0]) < 1e-6
    assert float(late[-1]) > 1 - 1e-6
    assert float(late[2]) == 0.5


def test_the_width_is_met_and_drawn_apart():
    mask = Mask(64, 48, Pat(), torch.device("cpu"))
    with torch.no_grad():
        mask.logits.add_(1e-3 * torch.randn(64, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(float(Mask(64, 48, Pat(), torch.device("cpu")).penalty()), 10 * 16 / 48 + 0.25)
    optimizer = torch.optim.Adam([mask.logits], lr=0.01)
    for _ in range(300):
        optimizer.zero_grad()
        mask.penalty().backward()
        optimizer.step()
    assert abs(int((mask.logits >= 0).sum()) - 48) <= 4
    mask.settle()
    assert int(mask.keep.sum()) == 48
    assert float(mask.logits.detach()[mask.keep].min()) >= float(mask.logits.detach()[~mask.keep].max())


def test_the_embedding_learns_and_a_tied_head_keeps_its_own():
    model = tiny("qwen3", tie_word_embeddings=True)
    anatomy = Anatomy.of(model)
    assert anatomy.tied
    head = anatomy.weight(anatomy.sites[-1]).dense().clone()
    bench = run(model, Recipe((Pat(steps=6, windows=2, learning_rate=0.01),)), shown(model), school=school)
    after = Anatomy.of(model)
    assert not after.tied
    left = after.weight(after.sites[-1]).dense()
    assert all(any(torch.equal(column, old) for old in head.T) for column in left.T)
    assert bench.receipts[0].notes["width"] == 48


def test_modules_stay_near_projections():
    pupil = Pat(module_rank=4).begin(Anatomy.of(tiny("llama")), _Seen())
    learner = pupil.turned[0]
    with torch.no_grad():
        learner.right.copy_(torch.eye(4, 64))
    assert float(learner.from_identity()) == 0
    assert len(pupil.turned) == 1 + 2 * 4


def test_bad_input_is_named_before_anything_moves():
    with pytest.raises(UsageError, match="pat: no multiple of 64 below 64 is near 48"):
        Pat(multiple=64).begin(Anatomy.of(tiny("llama")), _Seen())
    with pytest.raises(ModelError, match="pat: "):
        Pat().begin(Anatomy.of(tiny("gpt2")), _Seen())
    with pytest.raises(ModelError, match="pat: experts"):
        Pat().begin(Anatomy.of(tiny("mixtral")), _Seen())


def test_trains_as_many_numbers_as_it_says():
    anatomy = Anatomy.of(tiny("llama"))
    made = Pat(rank=4, module_rank=2)
    pupil = made.begin(anatomy, _Seen())
    assert sum(p.numel() for p in pupil.parameters()) == made.trained(anatomy)


def test_the_loss_falls():
    _, bench = ran("llama", Recipe((Pat(steps=12, windows=4, learning_rate=0.01),)))
    notes = bench.receipts[0].notes
    assert notes["last_loss"] < notes["first_loss"]

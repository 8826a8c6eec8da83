"""Compresso beyond its gates on heads and neurons: one on the residual stream, and the prompt that it learns behind."""

from dataclasses import replace

import pytest
import torch
from pupils import Compresso, Known, begun

from trimtab.anatomy import Anatomy
from trimtab.core.errors import ModelError, UsageError
from trimtab.core.narrowing import Separable
from trimtab.core.recipe import Calibration, Recipe
from trimtab.data.windows import leading
from trimtab.engine import teaching
from trimtab.engine.apply import apply
from trimtab.engine.run import run
from trimtab.engine.teaching import learning
from trimtab.host.compress import compress
from trimtab.host.school import school
from trimtab.testing.folders import byte_tokenizer, tiny_folder
from trimtab.testing.roundtrip import logits, ran, shown
from trimtab.testing.tiny import tiny

ASKED = 0.3


@pytest.mark.parametrize("family", ["llama", "qwen3", "smollm3"])
def test_what_is_cut_says_what_the_gates_said(family):
    model = tiny(family, rms_norm_eps=1e-12)  # what norms add to the mean square weighs a little less afterwards
    anatomy, pupil = begun(Compresso(sparsity=ASKED, hidden=True), model)
    with torch.no_grad():
        for place, logits_ in enumerate([pupil.stream.logits, *(gate.logits for gate in pupil.gates)]):
            logits_.copy_(1 + torch.randn(logits_.shape, generator=torch.Generator().manual_seed(place)))
        pupil.stream.logits[:10] = -5.0
    pupil.choose()
    for gate in pupil.gates:
        gate.settled.fill_(True)
    with learning(anatomy, pupil), torch.no_grad():
        before = logits(model)
    apply(anatomy, pupil.edits())
    assert model.get_input_embeddings().weight.shape[1] == pupil.stream.left < 64
    torch.testing.assert_close(logits(model), before, rtol=1e-5, atol=1e-5)


def test_channels_and_units_together_meet_the_budget():
    method = Compresso(sparsity=ASKED, hidden=True, steps=6, windows=2, learning_rate=0.01)
    _, pupil = begun(method, tiny("llama"))
    with torch.no_grad():
        pupil.stream.logits[:30] = -6.0  # 34 are wanted, and 44.8 are left by the budget: more would have to go than was asked
    pupil.choose()
    assert pupil.stream.left == 48
    left = pupil.whole - sum(gate.gone for gate in pupil.gates)
    cost = max(gate.coupling.cost for gate in pupil.gates)
    assert abs(left * 48 / 64 - (1 - ASKED) * pupil.whole) <= cost
    notes = pupil.notes()
    assert notes["weights_gone"] == round(pupil.whole - left * 48 / 64)
    assert (notes["width"], notes["width_before"]) == (48, 64)
    model, bench = ran("llama", Recipe((method,)))
    assert bench.receipts[0].notes["width"] == model.config.hidden_size


def test_streams_that_cannot_be_narrowed_are_refused():
    for family, why in (("mixtral", "experts"), ("gpt2", "bias")):
        anatomy = Anatomy.of(tiny(family))
        found = Separable(tuple(anatomy.couplings()), 10**6)
        with pytest.raises(ModelError, match=why):
            Compresso(hidden=True).begin(anatomy, Known(found, torch.Generator().manual_seed(0)))
    with pytest.raises(UsageError, match="hidden gates count coupled weights alone"):
        Compresso(hidden=True, of="model")


def test_windows_are_read_behind_the_prompt(monkeypatch):
    model, encode = tiny("llama", vocab_size=259), leading(byte_tokenizer())
    asked = []
    said = teaching._said
    monkeypatch.setattr(teaching, "_said", lambda m, ids, *more: asked.append((ids, said(m, ids, *more))) or asked[-1][1])
    method = Compresso(prompt="Be brief.", steps=2, windows=2, searched=0.5, warm_up=0.5)
    bench = run(model, Recipe((method,)), shown(model), school=school, encode=encode)
    ids, first = asked[0]
    whole = torch.cat([torch.tensor(encode("Be brief.")).expand(len(ids), -1), ids], 1)
    assert first.logits.shape[:2] == ids.shape
    assert any("'Be brief.'" in note for note in bench.notes)
    assert bench.receipts[0].notes["prompt"] == "Be brief."
    untouched = tiny("llama", vocab_size=259)
    with torch.no_grad():
        expected = untouched(whole, use_cache=False).logits[:, -ids.shape[1] :]
        alone = untouched(ids, use_cache=False).logits
    # Gates are drawn, so that only most of what is said is the same as that of the whole model.
    assert float((first.logits.detach() - expected).norm()) < 0.5 * float((expected - alone).norm())


def test_what_opens_a_window_stays_first():
    prompt = teaching._Prompt(1, torch.tensor([7, 8]))
    assert prompt.before(torch.tensor([[1, 5, 6]])).tolist() == [[1, 7, 8, 5, 6]]
    assert teaching.NO_PROMPT.before(torch.tensor([[1, 5]])).tolist() == [[1, 5]]


def test_prompts_that_nobody_can_read_or_that_are_too_long_are_refused():
    model = tiny("llama", vocab_size=259)
    recipe = Recipe((replace(Compresso(steps=2), prompt="Be brief."),))
    with pytest.raises(UsageError, match="run\\(\\) was given tokens alone"):
        run(model, recipe, shown(model), school=school)
    long = Recipe((Compresso(steps=2, prompt="word " * 2000),))
    with pytest.raises(UsageError, match=r"the model reads [0-9]+ at most; use shorter windows"):
        run(model, long, shown(model), school=school, encode=leading(byte_tokenizer()))


def test_the_report_says_what_to_put_before_a_text(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("A whale is a mammal, not a fish. " * 60)
    method = Compresso(prompt="Be brief.", steps=2, windows=2, searched=0.5, warm_up=0.5)
    recipe = Recipe((method,), Calibration(text=str(text), tokens=256, length=32))
    compressed = compress(tiny_folder(tmp_path / "model"), recipe, tmp_path / "out")
    assert any("'Be brief.'" in note for note in compressed.report.notes)

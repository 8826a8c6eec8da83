"""A recipe that compares the model with another one, from folder to folder and on the command line's own path."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from trimtab.core.errors import ModelError, UsageError
from trimtab.core.recipe import Calibration, Recipe
from trimtab.host.compress import compress, plan
from trimtab.testing.folders import tiny_folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model, and the one before some of its weights were changed."""
    place = tmp_path_factory.mktemp("pair")
    base, tuned = (tiny_folder(place / name, num_hidden_layers=1) for name in ("base", "tuned"))
    model = AutoModelForCausalLM.from_pretrained(tuned)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[::3] *= 1.2
        model.model.layers[0].self_attn.q_proj.weight[:, ::5] *= 1.5
    model.save_pretrained(tuned)
    return base, tuned


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_text("\n\n".join(f"Line {n} of a text that says {n * n} things." for n in range(200)), encoding="utf-8")
    return Calibration(str(text), tokens=256, length=32)


def test_the_base_is_opened_from_where_the_recipe_says(pair: tuple[Path, Path], calibration: Calibration, tmp_path: Path) -> None:
    base, tuned = pair
    recipe = Recipe.of(f"quantlrm(base={str(base)!r}) -> rtn(bits=3)", calibration)
    done = compress(tuned, recipe, tmp_path / "out")
    scales = [r for r in done.report.receipts if r.kind == "scale"]
    assert len(scales) == 4
    assert max(r.notes["most"] for r in scales) > 1.02
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.equal(again(ids).logits, done.model(ids).logits)


def test_a_base_that_is_missing_or_not_named_is_refused(pair: tuple[Path, Path], calibration: Calibration) -> None:
    _, tuned = pair
    plan(tuned, "quantlrm")  # what it would do does not depend on the other model
    with pytest.raises(UsageError, match="quantlrm compares with another model; say which"):
        compress(tuned, Recipe.of("quantlrm", calibration))
    with pytest.raises(ModelError):
        compress(tuned, Recipe.of("quantlrm(base='/nowhere/at-all')", calibration))
    with pytest.raises(UsageError, match=r"quantlrm: base: .* names no model"):
        Recipe.of("quantlrm(base='a|b')")

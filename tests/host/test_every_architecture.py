"""A packed model of every family opens in stock transformers and says the same, to the last bit."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from trimtab.core.recipe import Recipe
from trimtab.engine.run import run
from trimtab.host.checkpoint import load, save
from trimtab.testing.tiny import ARCHITECTURES, tiny, tokens


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_opens_again(family: str, tmp_path: Path) -> None:
    model = tiny(family)
    ids = tokens(model, 2, 8)
    run(model, Recipe.of("rtn(group_size=0)"), [ids])
    said = model(ids).logits
    save(model, None, tmp_path / "packed")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "packed", dtype=torch.float32)
    strictly, _ = load(tmp_path / "packed")
    assert torch.equal(again(ids).logits, said)
    assert torch.equal(strictly(ids).logits, said)

"""Blocks that share matrices answer without torch as they do with it, plain and packed."""

import numpy as np
import pytest
from runtime_problems import distance, prompt

from trimtab.anatomy import Anatomy
from trimtab.core.edits import Share
from trimtab.core.recipe import Recipe
from trimtab.engine.apply import apply
from trimtab.engine.run import run
from trimtab.host.checkpoint import save
from trimtab.testing.roundtrip import shown
from trimtab.testing.tiny import tiny


@pytest.mark.parametrize("expression", [None, "rtn(bits=4, group_size=16)"])
def test_shared_blocks_answer_as_in_torch(tmp_path, exact, expected, expression):
    model = tiny("qwen2")  # with biases, which are shared too
    apply(Anatomy.of(model), [Share(2, 1)])
    if expression:
        run(model, Recipe.of(expression), shown(model))
    folder, ids = save(model, None, tmp_path / "model"), prompt(20)
    _, reference = expected(folder, ids)
    session = exact(folder).session()
    assert distance(np.stack([session.step(id) for id in ids]), reference) < 2e-4


@pytest.mark.parametrize("codes", ["", " -> rtn(bits=8, group_size=0)"])
def test_blocks_on_one_basis_answer_as_in_torch(tmp_path, exact, expected, codes):
    model = tiny("qwen2")
    run(model, Recipe.of(f"basis_sharing(keep=0.6){codes}"), shown(model))
    folder, ids = save(model, None, tmp_path / "model"), prompt(20)
    _, reference = expected(folder, ids)
    session = exact(folder).session()
    assert distance(np.stack([session.step(id) for id in ids]), reference) < 2e-4

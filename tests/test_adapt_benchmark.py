"""The benchmark of adapters: what it runs can be read, sizes train equally much, memory is what is there, the page says it."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import adapt

from trimtab.anatomy import Anatomy
from trimtab.core.recipe import Recipe
from trimtab.host.checkpoint import load
from trimtab.measure.tuned_sides import is_tuned
from trimtab.testing.folders import tiny_folder


@pytest.mark.parametrize("recipe", adapt.recipes())
def test_every_recipe_ends_in_a_training(recipe: str) -> None:
    sizes, _ = adapt.METHODS.get(recipe, ((), 1.0))
    assert is_tuned(Recipe.of(recipe.format(sizes[20]) if sizes else recipe))


@pytest.mark.parametrize(
    "expression",
    [
        *("s2ft(share={})", "dora(rank={})", "diffora(rank={})", "corda(rank={})", "randlora(rank={})", "bone(rank={})"),
        "queryable_lora(rank={})",
    ],
)
def test_sizes_train_about_as_much_as_the_measure_of_all(expression: str, tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "tiny", num_hidden_layers=1)
    anatomy = Anatomy.of(load(folder)[0])
    found = adapt.trained(anatomy, adapt.sized(expression, folder)) * adapt.METHODS[expression][1]
    assert found == pytest.approx(adapt.trained(anatomy, adapt.BUDGET), rel=0.1)


def test_gradients_and_states_are_counted_where_they_are_most() -> None:
    layer = nn.Linear(10, 4, bias=False)
    optimizer = torch.optim.AdamW(layer.parameters())
    weighed = adapt.weighing()
    layer(torch.ones(10)).sum().backward()
    optimizer.step()
    weighed.after_update(0, optimizer)
    optimizer.zero_grad()
    weighed.after_update(1, optimizer)
    assert weighed.most == 3 * 40 * 4 + 4, "a gradient, two moments, and the count of steps"


def line(recipe: str, seed: int, learned: float) -> dict[str, object]:
    numbers = dict.fromkeys(("steps", "batch", "length", "threads", "general", "history"), 1)
    return {
        **{"model": "m", "recipe": recipe, "used": recipe, "task": "style", "seed": seed, "rate": 1e-3, "parameters": 1234},
        **{"seconds_per_step": 0.5, "weights": 2e6, "gradients_and_states": 3e6, "setting": numbers},
        **{"learned": [learned, learned + 0.1], "general": [4.0, 4.2]},
        "before": {"learned": [3.0, 3.2], "general": [3.9, 4.0]},
    }


def test_the_page_has_what_was_learned_and_forgotten_best_first() -> None:
    found = [line("lora(rank=8)", seed, 2.0) for seed in (0, 1)] + [line("bone(rank=8)", 0, 1.0)]
    told = adapt.page(found)
    assert told.index("| `bone") < told.index("| `lora")
    assert "-1.0500 (" in told
    assert "+0.1500 (" in told
    assert "| `lora(rank=8)` | 1,234 | 0.001 |" in told
    bone, lora = (row.split(" | ") for row in told.splitlines() if row.startswith(("| `bone", "| `lora")))
    assert bone[4].startswith("-1.0000 ("), "against the same seed of LoRA, loss against loss"
    assert lora[4] == ""
    assert bone[9] == "", "full tuning was not measured"
    found.append({**line(adapt.FULL, 0, 3.0), "gradients_and_states": 12e6})
    assert "| 1/4.0 | 2 |" in adapt.page(found)


def test_later_seeds_take_the_rate_that_was_best_with_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapt.Book, "lines", lambda book: [line("hut(rank={})", 0, 2.0)])
    fields = {"model": "m", "recipe": "hut(rank={})", "task": "style"}
    assert adapt.found_rate({**fields, "seed": 1}) == {"rate": 1e-3}
    assert adapt.found_rate({**fields, "seed": 0}) == {}
    assert adapt.found_rate({**fields, "task": "answers", "seed": 1}) == {}

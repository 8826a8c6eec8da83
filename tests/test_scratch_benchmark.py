"""The page of what is trained from the first step: everybody's own rate, and nothing shown before it is known."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("scratch_benchmark", FOLDER / "scratch.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def line(side: str, rate: float, seed: int, loss: float) -> dict[str, Any]:
    numbers = {"parameters": 1_000, "trained": 500, "counted": 2e6, "peak": 3e6, "seconds": 60.0}
    return {"side": side, "rate": rate, "seed": seed, "validation": loss, "losses": [loss, loss + 0.5], **numbers}


def side(bench: Any, name: str, best: int, loss: float) -> list[dict[str, Any]]:
    """A side with all rates of the first seed, and two more seeds at the best."""
    sweep = [line(name, rate, 0, loss + abs(number - best)) for number, rate in enumerate(bench.RATES)]
    return sweep + [line(name, bench.RATES[best], seed, loss + 0.01 * seed) for seed in (1, 2)]


def test_every_side_is_shown_at_its_own_rate(bench: Any) -> None:
    first, second = next(iter(bench.GROUPS.values()))[:2]
    text = bench.page(side(bench, first, 1, 4.0) + side(bench, second, 2, 3.0))
    rows = {row.split("`")[1]: row for row in text.splitlines() if row.startswith("| `")}
    assert list(rows) == [first, second]
    assert f"| {bench.RATES[1]:g} | 4.2600 | - | 3 x 2 |" in rows[first]
    assert f"| {bench.RATES[2]:g} | 3.2600 | -1.0000 (-1.0000 to -1.0000) | 3 x 2 |" in rows[second]


def test_a_best_rate_at_an_end_is_not_the_last_one_to_try(bench: Any) -> None:
    name = next(iter(bench.GROUPS.values()))[0]
    sweep = side(bench, name, 3, 4.0)
    assert bench.best_rate(sweep, name) is None
    assert bench.best_rate([*sweep, line(name, 2 * bench.RATES[3], 0, 5.0)], name) == bench.RATES[3]


def test_what_lets_gradients_go_is_counted_before(bench: Any) -> None:
    layer = torch.nn.Linear(10, 4, bias=False)
    optimizer = torch.optim.SGD(layer.parameters())
    counting = bench.counting()
    counting.model = layer
    layer(torch.ones(10)).sum().backward()
    counting.before_update(0, optimizer)
    layer.weight.grad = None
    counting.after_update(0, optimizer)
    assert counting.most == 2 * 40 * 4


def test_a_side_without_all_rates_is_not_shown(bench: Any) -> None:
    first, second = next(iter(bench.GROUPS.values()))[:2]
    found = side(bench, first, 1, 4.0) + side(bench, second, 1, 3.0)[1:]
    assert bench.best_rate(found, second) is None
    assert f"`{second}`" not in bench.page(found)


def test_a_group_holds_equally_many_numbers(bench: Any) -> None:
    from trimtab.anatomy import Anatomy
    from trimtab.engine.scratch import numbers
    from trimtab.host.homegrown import FAMILY

    for group in bench.GROUPS.values():
        begun = [bench.begun(name, FAMILY[bench.MODEL]) for name in group]
        held = [numbers(Anatomy.of(model), method) if method else model.num_parameters() for model, method in begun]
        assert max(held) < 1.01 * min(held), dict(zip(group, held, strict=True))

"""The benchmark of federated adaptation: faults change who counts and nothing else, and the page says what was learned."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import federated

from trimtab.host.federated import Terms
from trimtab.host.pretrain import Course
from trimtab.testing.folders import tiny_folder


def test_clients_that_fail_are_left_out_and_the_others_learn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_folder(tmp_path / "tiny", num_hidden_layers=1)
    terms = Terms(str(folder), Course(2, 2, 16, 5e-3, 0.0), only=("*q_proj",))
    data = []
    for kind in federated.KINDS:
        file = tmp_path / f"{kind}.jsonl"
        file.write_text("\n".join(json.dumps({"text": f"{kind} {n} of many"}) for n in range(6)), encoding="utf-8")
        data.append(str(file))
    change, refused = federated.rounds(terms, data, "stacked, ranks 4 8 16 32, faults", 2)
    assert [[*out] for out in refused] == [["coqa"], []]
    assert {left.shape[1] for left, _ in change.values()} == {(4 + 16 + 32) + (4 + 8 + 32)}
    assert all(torch.isfinite(factor).all() for factors in change.values() for factor in factors)
    before, after = (federated.losses(terms, one, [Path(data[0])]) for one in ({}, change))
    assert before != after


def line(way: str, seed: int, judged: float) -> dict[str, object]:
    numbers = dict.fromkeys(("rounds", "steps", "batch", "length"), 1)
    return {
        **{
            "model": "m",
            "way": way,
            "seed": seed,
            "rate": 1e-3,
            "rank": 60,
            "refused": [{"coqa": "why"}, {}],
            "setting": numbers,
        },
        **{name: {kind: [value, value + 1] for kind in federated.KINDS} for name, value in (("judged", judged), ("before", 3.0))},
    }


def test_the_page_sets_averaging_beside_stacking() -> None:
    stacked, averaged = "stacked, ranks 16", "averaged, ranks 16"
    told = federated.page([line(stacked, 0, 2.0), line(averaged, 0, 2.25), line(stacked, 1, 2.0), line(averaged, 1, 2.25)])
    assert f"| {stacked} | 0.001 | -1.0000 (-1.0000 to -1.0000) |  | 60 | 2 | 2 |" in told
    assert "| -0.7500 (-0.7500 to -0.7500) | +0.2500 (+0.2500 to +0.2500) | 60 |" in told

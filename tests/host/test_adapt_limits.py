"""What a training leaves behind, and where it meets a limit: the model's context, a full disk, a rate that nobody gave."""

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import trimtab as tt
from trimtab.core.errors import ModelError, TrimtabError
from trimtab.core.registry import get, ids
from trimtab.core.trained import TrainedMethod
from trimtab.host import adapt as adapting
from trimtab.host import adapters
from trimtab.host.adapt import adapt, merge
from trimtab.host.compress import compress
from trimtab.host.curves import receipt_with
from trimtab.report.reading import Node
from trimtab.report.receipts import record
from trimtab.testing.folders import tiny_folder

HOW: dict[str, Any] = {"batch": 2, "steps": 2, "validation": 0.2}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Half of the rows have more tokens, one for each byte, than 16."""
    file = tmp_path / "rows.jsonl"
    lines = [{"prompt": "a is ", "completion": "b" * (4 if number % 2 else 40)} for number in range(10)]
    file.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return file


def test_rows_are_cut_where_the_models_context_ends_and_counted(data: Path, tmp_path: Path) -> None:
    short = tiny_folder(tmp_path / "short", num_hidden_layers=1, max_position_embeddings=16)
    done = adapt(short, data, "lora(rank=2)", tmp_path / "out", length=256, **HOW)
    assert done.truncated + done.dropped == 5
    assert all(length > 0 for length in done.tuned.losses)
    roomy = tiny_folder(tmp_path / "roomy", num_hidden_layers=1, max_position_embeddings=64)
    assert adapt(roomy, data, "lora(rank=2)", tmp_path / "whole", length=256, **HOW).truncated == 0


def test_a_full_disk_leaves_the_old_adapter(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_folder(tmp_path / "base", num_hidden_layers=1)
    out = tmp_path / "out"
    adapt(base, data, "lora(rank=2)", out, **HOW)
    before = {file.name: file.read_bytes() for file in out.iterdir()}

    def full(*asked: Any, **more: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as there:
        there.setattr(adapters, "save_file", full)
        with pytest.raises(TrimtabError, match="is full"):
            adapt(base, data, "lora(rank=4)", out, overwrite=True, **HOW)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".out")]
    adapt(base, data, "lora(rank=4)", out, overwrite=True, **HOW)
    assert {file.name: file.read_bytes() for file in out.iterdir()} != before


def test_a_rate_that_nobody_gave_is_the_methods_own(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, rates = tiny_folder(tmp_path / "base", num_hidden_layers=2), []
    tune = adapting.tune
    monkeypatch.setattr(adapting, "tune", lambda *asked, **more: rates.append(asked[3].learning_rate) or tune(*asked, **more))
    for method, more in (("lora(rank=2)", {}), ("lisa", {}), ("lisa", {"learning_rate": 1e-4})):
        adapt(base, data, method, tmp_path / f"out{len(rates)}", **{**HOW, **more})
    assert rates == [2e-4, 5e-5, 1e-4]
    assert all(0 < get(id).usual_rate < 0.01 for id in ids() if issubclass(get(id), TrainedMethod))


def test_the_receipt_of_what_was_trained_tells_how_it_learned(data: Path, tmp_path: Path) -> None:
    base = tiny_folder(tmp_path / "base", num_hidden_layers=2)
    compress(base, "rtn(bits=4, group_size=32)", out=tmp_path / "packed")
    done = adapt(tmp_path / "packed", data, "lora(rank=2)", tmp_path / "adapter", **HOW)
    merge(tmp_path / "packed", tmp_path / "adapter", tmp_path / "merged")
    told = json.loads((tmp_path / "merged" / "receipt.json").read_text())
    assert told["receipts"] == json.loads((tmp_path / "packed" / "receipt.json").read_text())["receipts"]
    (learned,) = told["learned"]
    assert learned["losses"] == done.tuned.losses
    assert (learned["method"], learned["rows"]) == ("lora(rank=2)", done.rows)
    assert [(one["step"], one["loss"]) for one in learned["validations"]] == done.tuned.validations
    assert record(Node(told, "receipt.json")).learned[0].losses == tuple(done.tuned.losses)
    adapt(base, data, "lisa(every=1)", tmp_path / "once", **HOW)
    adapt(tmp_path / "once", data, "lisa(every=1)", tmp_path / "twice", **HOW)
    both = json.loads((tmp_path / "twice" / "receipt.json").read_text())
    assert [one["method"].partition("(")[0] for one in both["learned"]] == ["lisa", "lisa"]
    (tmp_path / "receipt.json").write_text('{"learned": 3}')
    with pytest.raises(ModelError, match="damaged: learned is no list"):
        receipt_with(tmp_path, "base", [])


def test_adapters_of_one_model_add_up(data: Path, tmp_path: Path) -> None:
    """In float64: the changes of channels that are not the same do not disturb each other, and those of both are there."""
    base = tiny_folder(tmp_path / "base", num_hidden_layers=2)
    made = [
        adapt(base, data, f"s2ft(share=0.1, slices='{slices}')", tmp_path / slices, learning_rate=1e-2, **HOW)
        for slices in ("vd", "ou")
    ]
    folders = [one.folder for one in made]
    changed = merge(base, folders, tmp_path / "both", dtype=torch.float64)
    alone = [merge(base, one, tmp_path / f"alone{number}", dtype=torch.float64) for number, one in enumerate(folders)]
    assert sorted(changed) == sorted(alone[0] + alone[1])
    there = {name: tt.load(tmp_path / name, dtype=torch.float64)[0].state_dict() for name in ("base", "both", "alone0", "alone1")}
    for name, weight in there["base"].items():
        parts = [(there[f"alone{number}"][name] - weight.double()) for number in range(2)]
        torch.testing.assert_close(there["both"][name], weight.double() + sum(parts), atol=0, rtol=0)
    again = merge(base, [folders[0], tmp_path / "vd"], tmp_path / "twice", dtype=torch.float64)
    assert len(again) == len(alone[0])
    told = json.loads((tmp_path / "both" / "receipt.json").read_text())["learned"]
    assert [one["method"] for one in told] == [one.method for one in made]

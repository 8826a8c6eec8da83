"""Two processes that train one model: the losses and the adapter are those of one, and one of them speaks."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from trimtab.host.adapt import adapt
from trimtab.host.trainer import Pace
from trimtab.testing.folders import tiny_folder

KNOBS = {"steps": 4, "length": 16, "batch": 4, "learning_rate": 5e-3, "validation": 0.2}
ROWS = [{"prompt": f"{a} and {a} is ", "completion": f"{a}{a}"} for a in "abcdefghijklm"]


@pytest.mark.parametrize("method", ["lora", pytest.param("ewc_lora", marks=pytest.mark.slow)])
def test_two_processes_come_to_what_one_does(tmp_path: Path, method: str) -> None:
    base, data = tiny_folder(tmp_path / "base", num_hidden_layers=2), tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    alone = adapt(base, data, f"{method}(rank=4)", tmp_path / "one", pace=Pace(1, every=2), **KNOBS)
    options = [
        f"--{name.replace('_', '-')}={value}" for name, value in {**KNOBS, "method": method, "rank": 4, "every": 2}.items()
    ]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "trimtab"]
    done = subprocess.run(
        [*launch, "adapt", str(base), str(data), "-o", str(tmp_path / "two"), "--json", *options],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)["tuned"]  # of one process alone, or it were no document
    assert told["losses"] == pytest.approx(alone.tuned.losses, abs=1e-5)
    assert [loss for _, loss in told["validations"]] == pytest.approx([loss for _, loss in alone.tuned.validations], abs=1e-5)
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-5)

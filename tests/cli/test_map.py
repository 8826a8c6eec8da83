"""`trimtab map`: one document, simulated and called that; what cannot be asked is refused."""

import json
from pathlib import Path


def test_a_plan_is_told_and_printed_as_json(trimtab, model: Path) -> None:
    found = json.loads(trimtab("map", model, "--contexts", "16,512", "--longest", "100", "--buckets", "3", "--json", "-q").stdout)
    assert found["simulated"] is True
    near, far = found["decode"]
    assert near["tokens_per_second"] > far["tokens_per_second"] > far["unfused_tokens_per_second"] > 0
    assert 0 < near["least_time"] <= 1
    compiled = found["compiled"]
    assert [one["tokens"] for one in compiled["buckets"]][-1] == 100
    assert 0 <= compiled["padding"] < compiled["one_bucket"]
    told = trimtab("map", model, "-q").stdout
    assert "simulated, not measured" in told
    assert "padding to the next of 6 lengths" in told


def test_what_cannot_be_asked_is_refused(trimtab, model: Path) -> None:
    done = trimtab("map", model, "--contexts", "16,many", "-q")
    assert done.exit_code == 2
    assert "--contexts are whole numbers" in done.stderr

"""What the shipped recipes cost: a line for every one of `trimtab/recipes/`, in `measured.jsonl` beside them.

    python benchmarks/recipes.py [--only NAME ...] [--seeds 0 ...]

The setting is that of the claims: SmolLM2-135M, 24 windows of 512 tokens, 8192 calibration tokens, by default three seeds.
A recipe that is a side of a claim has its numbers from the ledger; the others are measured here. Goals, such as
`trimtab compress MODEL --fit 2GiB`, choose by these lines, and by `speeds.json`: the last session of `runtime.py` with all kinds.
"""

import argparse
import json
import re
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from trimtab.core.recipe import Recipe
from trimtab.core.shipped import MEASURED, ROOM, names, read
from trimtab.host.provenance import commit, machine
from trimtab.measure.side_store import SideStore
from trimtab.measure.sides import Setting

HERE = Path(__file__).parent
RUNTIME, LEDGER = HERE / "runtime.jsonl", HERE.parent / "claims" / "ledger.jsonl"
ASKED = {"grouped2", "grouped3", "grouped4", "grouped8", "planes2", "planes3", "bfloat16"}  # what goals ask the speed of
BETWEEN = re.compile(r" [<>] ")


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--only", nargs="*", default=names(), help="these recipes; the lines of the others stay")
    options.add_argument("--seeds", nargs="+", type=int, default=[*Setting.seeds], help="fewer where one takes long")
    given = options.parse_args()
    (ROOM / "speeds.json").write_text(json.dumps(speeds(), indent=1) + "\n", encoding="utf-8")
    known = {line["recipe"]: line for line in _lines(MEASURED)}
    for name in given.only:
        known[name] = line(name, read(name), Setting(seeds=tuple(given.seeds)))
        print(name, *known[name]["perplexity"], flush=True)
        ranked = sorted(known.values(), key=lambda one: sum(one["perplexity"]) / len(one["perplexity"]))
        MEASURED.write_text("".join(json.dumps(one) + "\n" for one in ranked), encoding="utf-8")


def line(name: str, recipe: Recipe, setting: Setting) -> dict[str, Any]:
    """perplexity: one per seed, a single one where seeds change nothing; base: of the model as it came; n: windows."""
    if recipe.calibration != setting.calibration:
        raise SystemExit(f"{name} is to be measured as it is shipped: with {setting.calibration}")
    found = of_claims(recipe, setting) or measured_here(recipe, setting)
    return {"recipe": name, **found, "n": setting.windows, "setting": json.loads(json.dumps(asdict(setting)))}


def of_claims(recipe: Recipe, setting: Setting) -> dict[str, Any] | None:
    """What the last claim that has this side in this setting says of it."""
    wanted, found = json.loads(json.dumps(asdict(setting))), None
    for one in _lines(LEDGER):
        if "left_ppl" not in one or "base_ppl" not in one or any(one["setting"].get(key) != wanted[key] for key in wanted):
            continue
        for side, said in zip(("left", "right"), BETWEEN.split(one["statement"], maxsplit=1), strict=True):
            if Recipe.of(said).steps == recipe.steps:
                where = {"claim": f"{one['method']} {one['claim']}", "commit": one["commit"], "date": one["date"]}
                found = {
                    "steps": said,
                    "bits": one[f"{side}_bits"],
                    "perplexity": one[f"{side}_ppl"],
                    "base": one["base_ppl"],
                    **where,
                }
    return found


def measured_here(recipe: Recipe, setting: Setting) -> dict[str, Any]:
    (base,), found = SideStore(setting).sides([None, str(recipe)])
    # Where no seed can change the model, all sides are one.
    perplexities = [float(side.losses.mean().exp()) for side in (found if found[0].seeded else found[:1])]
    here = {"commit": commit(), "date": datetime.now(UTC).strftime("%Y-%m-%d"), "machine": machine()}
    return {
        "steps": str(recipe),
        "bits": found[0].bits,
        "perplexity": perplexities,
        "base": float(base.losses.mean().exp()),
        **here,
    }


def speeds() -> dict[str, Any]:
    """Bytes of weights per second of our own contenders, all threads; medians over rounds of the last whole session."""
    kinds: dict[str, set[str]] = {}
    lines = [one for one in _lines(RUNTIME) if one["program"] == "trimtab" and not one["red"]]
    for one in lines:
        kinds.setdefault(one["session"], set()).add(one["kind"])
    whole = [session for session, found in kinds.items() if found >= ASKED]
    last = [one for one in lines if one["session"] == whole[-1]]
    threads = max(one["threads"] for one in last)
    found = {one["kind"]: median(one["decode"]) * one["bytes_per_token"] for one in last if one["threads"] == threads}
    about = {name: last[0][name] for name in ("session", "commit", "model")}
    return {**about, "processor": last[0]["machine"]["processor"], "threads": threads, "bytes_per_second": found}


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(row) for row in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


if __name__ == "__main__":
    main()

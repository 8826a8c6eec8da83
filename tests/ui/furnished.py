"""A folder of results as the sample comparison has them."""

import json
from pathlib import Path

import sample

NAMES = ("asset:own-2m", "four-bit", "two-bit-lowrank")


def furnish(root: Path) -> Path:
    """Two measured results, one that is not, a folder of more, a recipe, a text, and links that lead outside."""
    facts = sample.comparison(blocks=6, names=NAMES)
    for number, model in enumerate(facts["others"]):
        model["receipt"]["model"] = NAMES[0]
        model["folder"] = str(sample.folder(root / model["name"], model["receipt"], width=2 - number))
    (root / "comparison.json").write_text(json.dumps(facts))
    sample.folder(root / "unmeasured", {**sample.receipt(4.5, 6, 1), "model": NAMES[0]})
    (root / "measured.json").write_text(json.dumps({"written": {}, "comparison": facts}))
    sample.folder(root / "more" / "deeper", {**sample.receipt(4.5, 6, 1), "model": NAMES[0]})
    (root / "three.yaml").write_text("trimtab: 1\nsteps:\n  - gptq: {bits: 3}\n")
    (root / "text.txt").write_text("some text")
    outside = root.parent / f"{root.name}-outside"
    sample.folder(outside / "secret", sample.receipt(4.5, 6, 1))
    (root / "link").symlink_to(outside / "secret", target_is_directory=True)
    return root

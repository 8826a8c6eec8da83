"""The model card that goes with a compressed model: what was done, what it cost, how to open it."""

import json
import re
from pathlib import Path

from trimtab.core.recipe import Recipe
from trimtab.core.report import Report

HEAD = """---
library_name: transformers
base_model: {base}
base_model_relation: quantized
tags: [trimtab, {tags}]
---

# {title}

Made with trimtab from `{base}`.

```python
import trimtab  # teaches transformers the packed formats; not needed if every matrix is plain
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
```

## Recipe

```yaml
{recipe}
```

## What was done, and what it cost

{report}
"""


def model_card(report: Report) -> str:
    """Markdown with front matter. Paths of this machine do not go in: a folder is named by its last part."""
    recipe = Recipe.from_dict(report.recipe)
    base = re.sub(r"[^\w.:/-]", "-", _base(report))  # it lands in YAML
    tags = ", ".join(dict.fromkeys(step.method.card.id for step in recipe.steps))
    title = f"{base}, {' -> '.join(step.method.card.id for step in recipe.steps)}"
    return HEAD.format(base=base, tags=tags, title=title, recipe=recipe.yaml().rstrip(), report=report.markdown())


def receipt(report: Report) -> str:
    """The whole report as JSON, for `receipt.json`. Like the card it names no place on this machine."""
    return json.dumps({**report.json(), "model": _base(report)}, indent=1, default=str) + "\n"


def _base(report: Report) -> str:
    return Path(report.model).name if Path(report.model).exists() else report.model

"""The model card that goes with a compressed model: what was done, what it cost, how to open it."""

import json
import re
from pathlib import Path

import yaml

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
    # As it stands in the report: a method that only the caller knows is in no registry.
    ids = [next(iter(step)) for step in report.recipe["steps"]]
    base = re.sub(r"[^\w.:/-]", "-", _base(report))  # it lands in YAML
    tags = ", ".join(dict.fromkeys(ids))
    title = f"{base}, {' -> '.join(ids)}"
    return HEAD.format(
        base=base,
        tags=tags,
        title=title,
        recipe=yaml.safe_dump(report.recipe, sort_keys=False).rstrip(),
        report=report.markdown(),
    )


def receipt(report: Report) -> str:
    """The whole report as JSON, for `receipt.json`. Like the card it names no place on this machine."""
    return json.dumps({**report.json(), "model": _base(report)}, indent=1, default=str) + "\n"


def _base(report: Report) -> str:
    return Path(report.model).name if Path(report.model).exists() else report.model

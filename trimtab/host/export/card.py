"""The model card that goes with an export: what became of the tensors, and what another reader says of it."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from trimtab.core.report import Measurement
from trimtab.host.export.contents import Entry, summary

if TYPE_CHECKING:
    from trimtab.host.export.job import Exported
    from trimtab.host.export.targets import Target

HEAD = """---
base_model: {base}
base_model_relation: quantized
tags: [trimtab, {to}]
---

# {base} as {to}

Written by trimtab from `{base}`; opens with {opens}.

## Tensors

| tensors | how many | stored before | stored here | values | change |
|---|---|---|---|---|---|
{rows}

## Opened again

In a process of its own by {opened_by}, {count} tokens, logits compared with the model's before the export:

| measure | value | standard error | n | unit |
|---|---|---|---|---|
{measured}
"""


def card(done: "Exported", chosen: "Target") -> str:
    """Markdown with front matter."""
    base = re.sub(r"[^\w.:/-]", "-", done.model)  # it lands in YAML
    first = done.measurements[0]
    text = HEAD.format(
        base=base,
        to=done.to,
        opens=chosen.opens_with,
        rows="\n".join(_row(entry, count) for entry, count in summary(done.entries)),
        opened_by=first.setting["opened_by"],
        count=first.n,
        measured=_measured(done.measurements),
    )
    return text + "".join(f"\n- {remark}" for remark in done.remarks) + ("\n" if done.remarks else "")


def _row(entry: Entry, count: int) -> str:
    change = f"{entry.error:.2g}" if entry.error is not None else ""
    return f"| `{entry.name}` | {count} | {entry.stored} | {entry.becomes} | {entry.verdict} | {change} |"


def _measured(found: Sequence[Measurement]) -> str:
    return "\n".join(f"| {m.name} | {m.value:.4g} | {m.stderr:.2g} | {m.n} | {m.unit} |" for m in found)

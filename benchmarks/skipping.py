"""Blocks skipped after the prompt, or for the prompt as well: what does it cost the tokens that follow, and what does it save?

    python benchmarks/skipping.py             every side on 24 passages; some minutes
    python benchmarks/skipping.py --quick     two short passages; nothing is kept

A passage is 256 tokens of prompt and 256 that follow. Blocks are those of `unified_skip`'s three patterns. At run time the prompt
is read by all blocks; the static form, which has no skipped blocks, reads it without them. Nothing is tuned. What follows is
judged against the whole model, paired over passages. Speed is that of one token after the other behind a prompt, through
transformers, in turns with the whole model. Losses and times of every side go to `skipping.json` and `SKIPPING.md`.
"""

import argparse
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import Any

from ledger import apart, row
from once import once, options

MODEL, JUDGED = "asset:smollm2-135m", "asset:coqa"
SPEEDUPS, PATTERNS = (1.25, 1.5, 2.0), ("unified", "contiguous", "early_exit")
FORMS = {"run time": False, "static": True}  # whether blocks are skipped for the prompt, too
DECODED, TURNS = 32, 3


def main() -> None:
    once(__file__, arguments(), measured, page)


def measured(given: argparse.Namespace) -> dict[str, Any]:
    from trimtab.anatomy import Anatomy
    from trimtab.data.windows import evaluation_windows
    from trimtab.host.checkpoint import load
    from trimtab.host.model_assets import resolve_model
    from trimtab.host.provenance import provenance
    from trimtab.host.source import history

    source = resolve_model(MODEL)
    model, tokenizer = load(source)
    assert tokenizer is not None
    windows = evaluation_windows(JUDGED, tokenizer, given.passages, given.prompt + given.after, given.seed)
    depth = len(Anatomy.of(model).blocks)
    lines = [{"form": "", "pattern": "", "speedup": 1.0, "losses": losses(model, windows, given.prompt, [], False)}]
    for speedup in SPEEDUPS:
        for pattern in PATTERNS:
            blocks = skipped(speedup, pattern, depth)
            side = {"speedup": speedup, "pattern": pattern, "kept": depth - len(blocks)}
            lines += [
                {**side, "form": form, "losses": losses(model, windows, given.prompt, blocks, whole)}
                for form, whole in FORMS.items()
            ]
    return {
        **{"model": MODEL, "history": history(Path(source)), "judged": JUDGED, "passages": given.passages, "seed": given.seed},
        **{"prompt": given.prompt, "after": given.after, "threads": given.threads, "depth": depth, "sides": lines},
        **{"speeds": {f"{of:g}": faster(model, windows[:1, : given.prompt], of, depth) for of in SPEEDUPS}, **provenance()},
    }


def skipped(speedup: float, pattern: str, depth: int) -> list[int]:
    from trimtab.methods import UnifiedSkip

    return UnifiedSkip(speedup=speedup, pattern=pattern).skipped(depth)


def losses(model: Any, windows: Any, prompt: int, blocks: list[int], whole: bool) -> list[float]:
    """Nats per token of what follows the prompt, all but its first token, by passage. whole: skipped for the prompt, too."""
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import DynamicCache

    from trimtab.anatomy import Anatomy
    from trimtab.core.edits import DropBlock
    from trimtab.engine.apply import apply
    from trimtab.host.skipping import skipping
    from trimtab.tensors.products import fast_products

    if whole:
        model = deepcopy(model)
        apply(Anatomy.of(model), [DropBlock(block) for block in blocks])
    found = []
    with torch.no_grad(), fast_products(), nullcontext() if whole else skipping(model, blocks):
        for window in windows:
            cache = DynamicCache(config=model.config)
            model(window[None, :prompt], past_key_values=cache)
            logits = model(window[None, prompt:], past_key_values=cache).logits
            found.append(float(cross_entropy(logits[0, :-1].double(), window[prompt + 1 :])))
    return found


def faster(model: Any, prompt: Any, speedup: float, depth: int) -> list[float]:
    """How many times as fast tokens follow one another behind a prompt [1, length], by turn."""
    blocks = skipped(speedup, PATTERNS[0], depth)
    return [decoding(model, prompt, []) / decoding(model, prompt, blocks) for _ in range(TURNS)]


def decoding(model: Any, prompt: Any, blocks: list[int]) -> float:
    """Seconds for so many tokens, one after the other; the prompt is not counted."""
    import torch
    from transformers import DynamicCache

    from trimtab.host.skipping import skipping

    cache = DynamicCache(config=model.config)
    with torch.no_grad(), skipping(model, blocks):
        token = model(prompt, past_key_values=cache).logits[:, -1:].argmax(-1)
        begun = perf_counter()
        for _ in range(DECODED):
            token = model(token, past_key_values=cache).logits.argmax(-1)
        return perf_counter() - begun


def page(found: dict[str, Any]) -> str:
    whole = found["sides"][0]
    head = (
        "# Blocks that are skipped after the prompt\n\n"
        "Generated by `skipping.py` from `skipping.json`, not edited by hand. "
        f"`{found['model']}`, {found['passages']} passages of {found['prompt']} + {found['after']} tokens of `{found['judged']}` "
        f"(seed {found['seed']}); nats a token of the latter, of which the whole model has {fmean(whole['losses']):.4f}, and the "
        f"difference to that. Nothing was tuned. Times as fast: {DECODED} tokens behind a prompt, through transformers, "
        f"{found['threads']} threads, the least and the most of {TURNS} turns. Of the model: {found['history']}.\n"
    )
    names = ("blocks", "pattern", "the prompt is read by", "nats", "against the whole model", "times as fast")
    rows = [row(names), "|---" * len(names) + "|"]
    for line in found["sides"][1:]:
        speeds = found["speeds"][f"{line['speedup']:g}"]
        cells = (
            f"{line['kept']} of {found['depth']}",
            line["pattern"],
            "the same blocks" if FORMS[line["form"]] else "all",
            f"{fmean(line['losses']):.4f}",
            apart([line["losses"]], [whole["losses"]]),
            f"{min(speeds):.2f} to {max(speeds):.2f}",
        )
        rows.append(row(cells))
    return "\n".join([head, *rows, ""])


def arguments() -> argparse.Namespace:
    parser = options(__doc__)
    parser.add_argument("--passages", type=int, default=24)
    parser.add_argument("--prompt", type=int, default=256, help="tokens that are read first")
    parser.add_argument("--after", type=int, default=256, help="tokens that are judged")
    given = parser.parse_args()
    if given.quick:
        given.passages, given.prompt, given.after = 2, 32, 32
    return given


if __name__ == "__main__":
    main()

"""Depth efficiency: what every block adds to the residual stream, and what would be missing without it.

With h what enters a block, y what leaves it and u = y - h:  contributions |u| / |h|, |a| / |h|, |m| / |h + a|, where a is what
the block adds while its down projections are silenced (attention or another mixer) and m = u - a; cosines of the same pairs,
negative where the block erases. Skipping block s (its output at all positions but the first is its input): the change
|u_l - u'_l| / |u_l| of all later blocks l, and of the predictions. Logit lens: the head on what leaves the block,
KL(lens || final) and the overlap of the top five.
Csordas, Manning and Potts, 2025 (arXiv:2505.13898). Not here: integrated gradients, depth scores of examples, the linear map
between two models. Whatever is measured leaves out the first token, and maxima stand beside quantiles.
"""

from dataclasses import dataclass
from statistics import median
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import Finding, ProbeMethod, Subject
from trimtab.core.knobs import choice, count
from trimtab.core.places import Role, Site
from trimtab.tensors.divergence import kl, spread_positions

TOP = 5
TINY = 1e-12


@dataclass(frozen=True)
class DepthEfficiency(ProbeMethod):
    card: ClassVar = Card(
        id="depth_efficiency",
        title="Do Language Models Use Their Depth Efficiently?",
        paper="arXiv:2505.13898",
        fidelity="exact",
        beside=("shortgpt", "update_geometry"),
        claims=(
            Claim(
                "second-half-adds-less",
                "depth_efficiency: adds, second half",
                "<",
                "depth_efficiency: adds, first half",
                metric="finding",
                published="smaller contributions relative to the stream in the second half, Llama 3.1, Qwen 3 and OLMo 2 models",
                note="block i of either half; the first block starts from the embedding and adds many times of it",
            ),
            Claim(
                "late-blocks-matter-less-to-later-ones",
                "depth_efficiency: later median, second half",
                "<",
                "depth_efficiency: later median, first half",
                metric="finding",
                published="skipping late blocks perturbs later computations less, same models",
                note="block i of either half; the last block has none behind it",
            ),
            Claim(
                "late-blocks-matter-less-to-predictions",
                "depth_efficiency: skip KL, second half",
                "<",
                "depth_efficiency: skip KL, first half",
                metric="finding",
                note="block i of either half",
            ),
        ),
    )

    positions: int = count("positions per window whose predictions are compared", 64)
    effect: str = choice(
        "a block is skipped in the whole window, or only before a random token behind which is looked",
        "whole",
        ("whole", "future"),
    )

    def measure(self, subject: Subject) -> list[Finding]:
        length, windows = len(subject.hidden(0, 0)), range(subject.windows)
        borders = [self._border(length, subject.generator) for _ in windows]
        rows = [[self._look(subject, block, w, borders[w]) for w in windows] for block in subject.blocks()]
        found = Finding.columns(rows, self._about(length, borders))
        skip, adds, lens = found["skip KL"], found["adds"], found["lens top 5"]
        found["skip KL"] = skip.saying(f"cheapest blocks to remove: {skip.lowest()}; protect: {skip.highest()}")
        found["adds"] = adds.saying(_halves(adds))
        found["lens top 5"] = lens.saying(_settled(lens))
        return list(found.values())

    def _about(self, length: int, borders: list[int]) -> dict[str, tuple[str, int]]:
        """Unit and number of observations of every quantity."""
        at, tokens = spread_positions(length, self.positions), len(borders) * (length - 1)
        behind, judged = sum(int((at >= border).sum()) for border in borders), len(borders) * len(at)
        return {
            "skip KL": ("nats/token", behind),
            "skip change": ("probability", behind),
            **dict.fromkeys(("later median", "later 90 %", "later max"), ("relative", sum(length - b for b in borders))),
            **dict.fromkeys(("adds", "adds 90 %", "adds max", "attention", "mlp"), ("relative", tokens)),
            **dict.fromkeys(("cos(u,h)", "cos(attention,h)", "cos(mlp,h+a)"), ("cosine", tokens)),
            "lens KL": ("nats/token", judged),
            "lens top 5": ("fraction", judged),
        }

    def _border(self, length: int, generator: torch.Generator) -> int:
        """Positions from here on are looked at; skipped are those before it, or all of them."""
        return 1 if self.effect == "whole" else int(torch.randint(2, length, (1,), generator=generator))

    def _look(self, subject: Subject, block: int, window: int, border: int) -> dict[str, float]:
        depth = len(subject.anatomy.blocks)
        entering, leaving = subject.hidden(block, window), subject.hidden(block + 1, window)
        at = spread_positions(len(entering), self.positions).to(entering.device)
        behind = at[at >= border]
        final, lens = subject.logits(subject.hidden(depth, window)[at]), subject.logits(leaving[at])
        without, later = self._skipped(subject, block, window, border)
        kept, changed = final[at >= border], subject.logits(without[behind])
        sizes, cosine = _relative(leaving[1:] - entering[1:], entering[1:])
        return {
            "skip KL": float(kl(kept, changed).mean()),
            "skip change": float((kept.softmax(-1) - changed.softmax(-1)).norm(dim=-1).mean()),
            **later,
            **{"adds": float(sizes.mean()), **_upper("adds", sizes), "cos(u,h)": cosine},
            **_parts(subject, block, window),
            **{"lens KL": float(kl(lens, final).mean()), "lens top 5": _overlap(lens, final)},
        }

    def _skipped(self, subject: Subject, block: int, window: int, border: int) -> tuple[Tensor, dict[str, float]]:
        """What leaves the last block without this one, and how much the updates of the blocks between changed."""
        entering = subject.hidden(block, window)
        until = len(entering) if self.effect == "whole" else border
        hidden = subject.hidden(block + 1, window).clone()
        hidden[1:until] = entering[1:until]
        changes = []
        for later in range(block + 1, len(subject.anatomy.blocks)):
            update = (subject.hidden(later + 1, window) - subject.hidden(later, window))[border:]
            following = subject.drive(later, window, hidden)
            changes.append((following - hidden)[border:].sub(update).norm(dim=-1) / update.norm(dim=-1).clamp(min=TINY))
            hidden = following
        if not changes:
            return hidden, {}
        every = torch.cat(changes)
        return hidden, {"later median": float(every.median()), **_upper("later", every)}


def _relative(added: Tensor, stream: Tensor) -> tuple[Tensor, float]:
    """|added| / |stream| per token, and the mean cosine between the two. [tokens, width] each."""
    sizes = added.norm(dim=-1) / stream.norm(dim=-1).clamp(min=TINY)
    return sizes, float(cosine_similarity(added, stream, dim=-1).mean())


def _parts(subject: Subject, block: int, window: int) -> dict[str, float]:
    """The same for attention and MLP; nothing where they cannot be told apart."""
    down = _down(subject, block)
    if not down:
        return {}
    entering, leaving = subject.hidden(block, window), subject.hidden(block + 1, window)[1:]
    middle = subject.drive(block, window, entering, dict.fromkeys(down))[1:]
    attention, mlp = _relative(middle - entering[1:], entering[1:]), _relative(leaving - middle, middle)
    sizes = {"attention": float(attention[0].mean()), "mlp": float(mlp[0].mean())}
    return {**sizes, "cos(attention,h)": attention[1], "cos(mlp,h+a)": mlp[1]}


def _down(subject: Subject, block: int) -> list[Site]:
    """The block's down projections. None of them if experts have biases, which are added elsewhere."""
    down = [site for site in subject.anatomy.block_sites(block) if site.role is Role.DOWN]
    biased = any(site.index is not None and subject.anatomy.bias(site) is not None for site in down)
    return [] if biased else down


def _upper(name: str, values: Tensor) -> dict[str, float]:
    """A maximum over tokens is noisy, so the quantile stands beside it."""
    return {f"{name} 90 %": float(torch.quantile(values.double(), 0.9)), f"{name} max": float(values.max())}


def _overlap(lens: Tensor, final: Tensor) -> float:
    """Which part of the most likely tokens is the same."""
    top = min(TOP, final.shape[-1])
    one, other = lens.topk(top).indices, final.topk(top).indices
    return float((one[:, :, None] == other[:, None, :]).any(-1).double().mean())


def _halves(adds: Finding) -> str:
    values = [m.value for m in adds.measurements]
    if len(values) < 2:
        return ""
    # Medians: the first block starts from the embedding and adds many times of that.
    first, second = median(values[: len(values) // 2]), median(values[len(values) // 2 :])
    return f"a block adds {first:.3g} of the stream in the first half and {second:.3g} in the second (medians)"


def _settled(lens: Finding) -> str:
    there = [m.setting["block"] for m in lens.measurements if m.value >= 0.5]
    return f"half of the final top {TOP} stands after block {there[0]}" if there else f"the final top {TOP} never stands"

"""QuantVLA on a stand-in: a small policy that is rounded where the paper rounds, with and without its two corrections.

    python benchmarks/policy.py             three policies, POLICY.md
    python benchmarks/policy.py --quick     one that has hardly learned; prints, writes nothing

A point in the plane shall go round a disc to a goal. An encoder reads what is seen (a token each for the point, goal and disc), a
transformer cross-attends to it and turns noise into 8 moves, by flow matching (2 layers of encoder, 3 of the head; 48 channels).
Rounded are all matrices of the encoder and of the head's MLPs, weights row by row and inputs token by token; attention in the
head stays as it is and is corrected: logits' spread (ATM), then size of the output (OHB), from 32 observations. The paper's
policies are a thousand times as large: this says whether the corrections do what they are for, not what they bring there.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import fmean, stdev

import torch
import torch.nn.functional as F
from once import tried
from torch import Tensor, nn

from trimtab.core.kinds import Seen
from trimtab.core.places import Role, Site
from trimtab.core.registry import get
from trimtab.core.seeds import Seeds
from trimtab.engine.packed_linear import PackedLinear
from trimtab.formats import Activations, Dense
from trimtab.tensors.matching import balance, logit_spread, temperature

WIDTH, HEADS, MOVES, FLOW_STEPS = 48, 4, 8, 8
BATCH, SHOWN, JUDGED, NEAR = 64, 32, 256, 0.1
SETTINGS = ((4, 8), (3, 8), (4, 4), (2, 8))  # bits of weights and inputs
CORRECTIONS = ("none", "ATM", "OHB", "ATM and OHB")


class Attention(nn.Module):
    """alpha [heads] multiplies queries, beta the output. Inside `watching`, what both are matched by is written down."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.register_buffer("alpha", torch.ones(HEADS))
        self.register_buffer("beta", torch.ones(()))
        self.spreads: list[Tensor] | None = None
        self.squares: list[Tensor] = []

    def forward(self, x: Tensor, others: Tensor) -> Tensor:
        parts = (
            layer(y).unflatten(-1, (HEADS, -1)).transpose(1, 2) for layer, y in ((self.q, x), (self.k, others), (self.v, others))
        )
        query, key, value = parts
        query = query * self.alpha[:, None, None]
        y = self.o(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)) * self.beta
        if self.spreads is not None:
            self.spreads.append(logit_spread(query, key))
            self.squares.append(y.double().square().mean())
        return y


class Layer(nn.Module):
    def __init__(self, cross: bool):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3 if cross else 2))
        self.attends = nn.ModuleList(Attention() for _ in range(2 if cross else 1))
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor, others: Tensor | None = None) -> Tensor:
        for number, attention in enumerate(self.attends):
            y = self.norms[number](x)
            x = x + attention(y, y if number == 0 or others is None else others)
        return x + self.down(F.gelu(self.up(self.norms[-1](x))))


class Policy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seeing, self.acting, self.time = nn.Linear(2, WIDTH), nn.Linear(2, WIDTH), nn.Linear(1, WIDTH)
        self.kind, self.place = nn.Parameter(torch.zeros(3, WIDTH)), nn.Parameter(torch.zeros(MOVES, WIDTH))
        self.encoder = nn.ModuleList(Layer(cross=False) for _ in range(2))
        self.head = nn.ModuleList(Layer(cross=True) for _ in range(3))
        self.last = nn.Linear(WIDTH, 2)

    def encode(self, seen: Tensor) -> Tensor:
        """seen [batch, 3, 2] -> [batch, 3, width]."""
        x = self.seeing(seen) + self.kind
        for layer in self.encoder:
            x = layer(x)
        return x

    def forward(self, moves: Tensor, time: Tensor, encoded: Tensor) -> Tensor:
        """The direction from noise to moves [batch, 8, 2] at times [batch, 1, 1]."""
        x = self.acting(moves) + self.place + self.time(time)
        for layer in self.head:
            x = layer(x, encoded)
        return self.last(x)

    @torch.no_grad()
    def act(self, seen: Tensor, noise: Tensor) -> Tensor:
        encoded, moves = self.encode(seen), noise
        for step in range(FLOW_STEPS):
            time = torch.full((len(seen), 1, 1), step / FLOW_STEPS)
            moves = moves + self(moves, time, encoded) / FLOW_STEPS
        return moves


def scenes(count: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """What is seen [count, 3, 2] (point, goal, disc) and the moves [count, 8, 2] of somebody who knows, ten times as large."""
    start, goal = 2 * torch.rand(2, count, 2, generator=draw) - 1
    disc = (start + goal) / 2 + 0.2 * torch.randn(count, 2, generator=draw)
    along = goal - start
    aside = torch.stack([-along[:, 1], along[:, 0]], 1) / along.norm(dim=1, keepdim=True).clamp(min=0.1)
    off = ((disc - start) * aside).sum(1, keepdim=True)
    bend = -off.sign() * (0.4 - off.abs()).clamp(min=0)  # round the disc, on the side that is nearer
    part = torch.linspace(0, 1, MOVES + 1)[None, :, None]
    path = start[:, None] + part * along[:, None] + torch.sin(torch.pi * part) * (bend * aside)[:, None]
    return torch.stack([start, goal, disc], 1), 10 * path.diff(dim=1)


def trained(seed: int, steps: int) -> Policy:
    seeds = Seeds(seed)
    policy = Policy()
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if parameter.ndim == 2:
                parameter.copy_(torch.randn(parameter.shape, generator=seeds.at(name)) * parameter.shape[1] ** -0.5)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=2e-3)
    slower = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    draw = seeds.at("lessons")
    for _ in range(steps):
        seen, moves = scenes(BATCH, draw)
        noise, time = torch.randn(moves.shape, generator=draw), torch.rand(len(seen), 1, 1, generator=draw)
        found = policy((1 - time) * noise + time * moves, time, policy.encode(seen))
        optimizer.zero_grad()
        F.mse_loss(found, moves - noise).backward()
        optimizer.step()
        slower.step()
    return policy.eval()


def rounded(policy: Policy, bits: int, input_bits: int) -> Policy:
    """A copy with the encoder and the head's MLPs on grids; embeddings, the last layer and the head's attention as they were."""
    copy = Policy().eval()
    copy.load_state_dict(policy.state_dict())
    for path, layer in [*copy.named_modules()]:
        in_head = path.startswith("head.") and path.rpartition(".")[2] in ("up", "down")
        if isinstance(layer, nn.Linear) and (path.startswith("encoder.") or in_head):
            site = Site(path, Role.OTHER, (layer.out_features, layer.in_features))
            method = get("rtn")(bits=bits, group_size=0, symmetric=True)
            codes = method.solve(Dense(layer.weight.detach()), Seen({}), site)
            copy.set_submodule(path, PackedLinear.of(Activations(codes, input_bits, layer.in_features), layer.bias).eval())
    return copy


@contextmanager
def watching(attentions: Sequence[Attention]) -> Iterator[None]:
    for attention in attentions:
        attention.spreads, attention.squares = [], []
    yield
    for attention in attentions:
        attention.spreads = None


def moments(policy: Policy, seen: Tensor, noise: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Of every attention of the head: spread by head [heads], and root mean square of the output; means over flow steps."""
    attentions = attentions_of(policy)
    with watching(attentions):
        policy.act(seen, noise)
        return [(torch.stack(a.spreads or []).mean(0), torch.stack(a.squares).mean().sqrt()) for a in attentions]


def attentions_of(policy: Policy) -> list[Attention]:
    return [module for module in policy.head.modules() if isinstance(module, Attention)]


def correct(policy: Policy, whole: Policy, how: str, seen: Tensor, noise: Tensor) -> int:
    """Match the head's attention to the untouched policy's; how many factors are not 1."""
    wanted = moments(whole, seen, noise)
    if "ATM" in how:
        for attention, (spread, _), (found, _) in zip(attentions_of(policy), wanted, moments(policy, seen, noise), strict=True):
            attention.alpha.copy_(temperature(spread, found))
    if "OHB" in how:
        for attention, (_, size), (_, found) in zip(attentions_of(policy), wanted, moments(policy, seen, noise), strict=True):
            attention.beta.copy_(balance(size, found))
    return sum(int((a.alpha != 1).sum()) + int(a.beta != 1) for a in attentions_of(policy))


def judged(policy: Policy, whole: Policy, seed: int) -> tuple[float, float]:
    """Mean squared distance of moves from the untouched policy's, and how often the goal is reached."""
    draw = Seeds(seed).at("judged")
    seen, _ = scenes(JUDGED, draw)
    noise = torch.randn(JUDGED, MOVES, 2, generator=draw)
    moves = policy.act(seen, noise)
    end = seen[:, 0] + moves.sum(1) / 10
    return float((moves - whole.act(seen, noise)).square().mean()), float(((end - seen[:, 1]).norm(dim=1) < NEAR).float().mean())


def measured(seed: int, steps: int) -> dict[tuple[int, int, str], tuple[float, float, int]]:
    """By bits of weights, of inputs, and correction: distance, success, and how many factors are not 1."""
    whole = trained(seed, steps)
    draw = Seeds(seed).at("shown")
    seen, noise = scenes(SHOWN, draw)[0], torch.randn(SHOWN, MOVES, 2, generator=draw)
    found = {(16, 16, "none"): (*judged(whole, whole, seed), 0)}
    for bits, input_bits in SETTINGS:
        for how in CORRECTIONS:
            policy = rounded(whole, bits, input_bits)
            moved = correct(policy, whole, how, seen, noise)
            found[bits, input_bits, how] = (*judged(policy, whole, seed), moved)
    return found


def page(runs: Sequence[dict[tuple[int, int, str], tuple[float, float, int]]], steps: int) -> str:
    lines = [
        "# A policy with rounded parts",
        "",
        f"Generated by `policy.py`, not edited by hand. {len(runs)} policies (seeds 0 to {len(runs) - 1}), {steps} steps of "
        f"{BATCH} scenes each; {JUDGED} scenes judged, goals reached within {NEAR}; corrected by {SHOWN} observations. ± is the "
        "standard error over policies. Distances are mean squared ones from the moves of the untouched policy, with the same "
        "scenes and noise; against none: the mean difference to no correction.",
        "",
        "| weights | inputs | corrected | distance | against none | reached | factors moved |",
        "|---|---|---|---|---|---|---|",
    ]
    for key in runs[0]:
        bits, input_bits, how = key
        columns = [[run[key][number] for run in runs] for number in range(3)]
        plain = [run[bits, input_bits, "none"][0] for run in runs]
        against = spread([a - b for a, b in zip(columns[0], plain, strict=True)])
        cells = (
            f"{bits} bit",
            f"{input_bits} bit",
            how,
            spread(columns[0]),
            against,
            spread(columns[1]),
            f"{fmean(columns[2]):.1f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def spread(values: Sequence[float]) -> str:
    error = f" ± {stdev(values) / len(values) ** 0.5:.3g}" if len(values) > 1 else ""
    return f"{fmean(values):.4g}{error}"


def main() -> int:
    return tried(__doc__, __file__, "one policy that has hardly learned", tables)


def tables(quick: bool) -> str:
    steps = 30 if quick else 3000
    return page([measured(seed, steps) for seed in range(1 if quick else 3)], steps)


if __name__ == "__main__":
    raise SystemExit(main())

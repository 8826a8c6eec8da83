"""A language model that picks the bitrate of a video: encoders for numbers, LoRA, and a head in the place of words (NetLLM).

    python benchmarks/netllm.py            every line that is missing, on asset:own-5m
    python benchmarks/netllm.py --quick    few traces and steps, one seed, nothing is kept: tries the plumbing

Wu et al., SIGCOMM 2024, adaptive bitrate streaming. The network is made up (`bitrates.py`). Two usual policies leave experience
on some traces, and a frozen model with LoRA learns from it, offline: a step is a return that is wished for, six tokens of state
and one of action, each from an encoder of its own; the head names the next bitrate at the last token of the state, so an answer
is one forward pass and always valid. The return to wish for is chosen on traces of their own, and all are judged on others still.
Beside the model as it came stands the same with every matrix drawn anew: what pretraining is worth. Lines go to `netllm.jsonl`,
and `NETLLM.md` is made from the newest of each.
"""

import argparse
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from bitrates import BITRATES, CHUNKS, KINDS, PAST, POLICIES, Episode, Player, episode, players
from ledger import Book, Job, Line, apart, by_seed, numbers, options, row
from torch import Tensor, nn

BOOK = Book(__file__, ("model", "way", "seed"))
WAYS = ("as it came", "drawn anew")
NUMBERS = ("traces", "steps", "batch", "window", "rank", "rate")

WIDTH = 32
WISHES = (0.8, 1.0, 1.2)  # of the best return of the experience
VECTORS = KINDS[2:5]


def main() -> int:
    return BOOK.drive(arguments(), jobs, measured, page)


def jobs(given: argparse.Namespace) -> Iterator[Job]:
    return by_seed(given, WAYS, NUMBERS)


class Picker(nn.Module):
    """Encoders, a language model whose hidden states are `width` wide, and a head."""

    def __init__(self, model: Any, width: int):
        super().__init__()
        self.model = model
        sizes = {kind: WIDTH * (PAST - 3) if kind in VECTORS else WIDTH for kind in KINDS}
        first = {kind: nn.Conv1d(1, WIDTH, 4) if kind in VECTORS else nn.Linear(1, WIDTH) for kind in KINDS}
        self.encoders = nn.ModuleDict(first)
        self.into = nn.ModuleDict({kind: nn.Linear(size, width) for kind, size in sizes.items()})
        self.wish, self.action, self.time = nn.Linear(1, width), nn.Linear(1, width), nn.Embedding(CHUNKS, width)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, len(BITRATES))

    def forward(self, wishes: Tensor, states: Tensor, actions: Tensor, steps: Tensor) -> Tensor:
        """[batch, window, bitrates]: what to do next. wishes, actions, steps [batch, window]; states [batch, window, 6, 6]."""
        done = (actions + 1)[..., None].float() / len(BITRATES)
        of_state = [self._encoded(kind, states[..., row, :]) for row, kind in enumerate(KINDS)]
        stream = torch.stack([self.wish(wishes[..., None]), *of_state, self.action(done)], 2)  # [batch, window, 8, width]
        stream = self.norm(stream + self.time(steps)[:, :, None])
        hidden = self.model.base_model(inputs_embeds=stream.flatten(1, 2), use_cache=False).last_hidden_state
        return self.head(hidden.unflatten(1, (-1, len(KINDS) + 2))[:, :, len(KINDS)])

    def _encoded(self, kind: str, values: Tensor) -> Tensor:
        encoder = self.encoders[kind]
        if kind in VECTORS:
            found = encoder(values.flatten(0, 1)[:, None]).flatten(1).unflatten(0, values.shape[:2])
        else:
            found = encoder(values[..., :1])
        return self.into[kind](F.leaky_relu(found))


def opened(given: argparse.Namespace, anew: bool) -> Picker:
    """The model, frozen, with LoRA at the queries and values; with `anew` its matrices are random, of the same deviation."""
    from trimtab.anatomy import Anatomy
    from trimtab.core.recipe import Where
    from trimtab.core.seeds import Seeds
    from trimtab.engine import adapting
    from trimtab.host.adapt import as_trained
    from trimtab.host.checkpoint import load
    from trimtab.host.model_assets import resolve_model

    model, _ = load(resolve_model(given.model))
    if anew:
        for name, value in model.named_parameters():
            if value.ndim > 1:
                value.data = value.std() * torch.randn(value.shape, generator=Seeds(given.seed).at("anew", name))
    lora: Any = as_trained(f"lora(rank={given.rank})")
    adapting.attach(Anatomy.of(model), lora, Where(only=("*q_proj", "*v_proj")), Seeds(given.seed))
    picker = Picker(model, model.config.get_text_config().hidden_size)
    for name, value in picker.named_parameters():
        if not name.startswith("model.") and value.ndim > 1:  # gains stay one
            drawn = 2 * torch.rand(value.shape, generator=Seeds(given.seed).at("picker", name)) - 1
            value.data = drawn * value[0].numel() ** -0.5
        elif not name.startswith("model.") and name.endswith("bias"):
            value.data.zero_()
    return picker


def returns(qualities: Tensor, low: float, high: float) -> Tensor:
    """[chunks]: what is still to come, every chunk from 0 to 1, divided by how many there are."""
    return ((qualities - low) / (high - low)).flip(0).cumsum(0).flip(0) / CHUNKS


def learn(picker: Picker, seen: Sequence[Episode], given: argparse.Namespace) -> tuple[list[float], float]:
    """(the loss of every step, the best return there was)"""
    from trimtab.core.seeds import Seeds

    draw, every = Seeds(given.seed).at("windows"), torch.cat([one.qualities for one in seen])
    wishes = [returns(one.qualities, float(every.min()), float(every.max())) for one in seen]
    moved = [p for p in picker.parameters() if p.requires_grad]
    optimizer, losses = torch.optim.AdamW(moved, lr=given.rate), []
    picker.train()
    for step in range(given.steps):
        for group in optimizer.param_groups:
            group["lr"] = given.rate * min(1.0, 20 * (step + 1) / given.steps) * (1 - step / given.steps)
        which = torch.randint(len(seen), (given.batch,), generator=draw).tolist()
        begin = torch.randint(CHUNKS - given.window + 1, (given.batch,), generator=draw).tolist()
        parts = [slice(start, start + given.window) for start in begin]
        wish, states = (
            torch.stack([of[i][p] for i, p in zip(which, parts, strict=True)]) for of in (wishes, [e.states for e in seen])
        )
        actions = torch.stack([seen[i].actions[p] for i, p in zip(which, parts, strict=True)])
        steps = torch.tensor(begin)[:, None] + torch.arange(given.window)
        loss = F.cross_entropy(picker(wish, states, actions, steps).flatten(0, 1), actions.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(moved, 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    picker.eval()
    return losses, float(max(wish[0] for wish in wishes))


@torch.no_grad()
def played(picker: Picker, some: Sequence[Player], wish: float, low: float, high: float, window: int) -> list[float]:
    """Mean quality of a chunk for every player; all go on together. What was reached is taken off the wish."""
    wishes, states, actions, qualities = (torch.zeros(len(some), CHUNKS, *more) for more in ((), (len(KINDS), PAST), (), ()))
    left = torch.full((len(some),), wish)
    for step in range(CHUNKS):
        wishes[:, step], states[:, step] = left, torch.stack([player.state() for player in some])
        part = slice(max(0, step + 1 - window), step + 1)
        steps = torch.arange(CHUNKS)[part].expand(len(some), -1)
        chosen = picker(wishes[:, part], states[:, part], actions[:, part], steps)[:, -1].argmax(-1)
        actions[:, step] = chosen
        qualities[:, step] = torch.tensor([player.play(level) for player, level in zip(some, chosen.tolist(), strict=True)])
        left = left - (qualities[:, step] - low) / (high - low) / CHUNKS
    return qualities.mean(1).tolist()


def measured(given: argparse.Namespace) -> Line:
    from trimtab.host.provenance import provenance

    torch.set_num_threads(given.threads)
    seen = [episode(policy, one) for policy in POLICIES.values() for one in players(given.traces, "learn", given.seed)]
    every = torch.cat([one.qualities for one in seen])
    low, high = float(every.min()), float(every.max())
    picker = opened(given, given.one == "drawn anew")
    losses, best = learn(picker, seen, given)

    def judged(wish: float, part: str) -> list[float]:
        return played(picker, players(given.traces // 2, part, given.seed), wish * best, low, high, given.window)

    wish = max(WISHES, key=lambda wish: fmean(judged(wish, "choose")))
    judge = players(given.traces // 2, "judge", given.seed)
    usual = {
        name: [float(episode(policy, Player(p.trace, p.sizes)).qualities.mean()) for p in judge]
        for name, policy in POLICIES.items()
    }
    return {
        "wish": wish,
        "losses": losses,
        "quality": judged(wish, "judge"),
        "usual": usual,
        "parameters": sum(p.numel() for p in picker.parameters() if p.requires_grad),
        "setting": numbers(given, *NUMBERS, "threads"),
        **provenance(),
    }


def page(found: list[Line]) -> str:
    text = [
        "# A language model that picks bitrates",
        "",
        "Made by `benchmarks/netllm.py` from `netllm.jsonl`, not edited by hand.",
        "",
    ]
    for model in sorted({line["model"] for line in found}):
        own = [line for line in found if line["model"] == model]
        text += [f"## {model}", "", about(own[0]), "", HEAD, RULE, *table(own), ""]
    return "\n".join(text)


HEAD = "| who picks | quality of a chunk | against the best policy (95 % interval) | seeds |"
RULE = "|---|---|---|---|"


def about(line: Line) -> str:
    setting = line["setting"]
    return (
        f"{setting['traces']} made-up traces to learn from, half as many to judge by; {setting['steps']} steps of "
        f"{setting['batch']} windows of {setting['window']} chunks, {line['parameters']:,} trained parameters. "
        f"Quality in Mbit/s, higher is better."
    )


def table(own: list[Line]) -> list[str]:
    sides: dict[str, dict[int, list[float]]] = {name: {} for name in (*POLICIES, *WAYS)}
    for line in own:
        sides[line["way"]][line["seed"]] = line["quality"]
        for name in POLICIES:
            sides[name][line["seed"]] = line["usual"][name]
    best = max(POLICIES, key=lambda name: fmean(value for some in sides[name].values() for value in some))
    rows = []
    for name, found in sides.items():
        if not found:
            continue
        mean = fmean(value for some in found.values() for value in some)
        said = "" if name == best else apart([*found.values()], [sides[best][seed] for seed in found], digits=3)
        rows.append(row((name, f"{mean:.3f}", said, len(found))))
    return rows


def arguments() -> argparse.Namespace:
    parser = options(__doc__, "few traces and steps, one seed")
    parser.add_argument("--model", default="asset:own-5m")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--traces", type=int, default=80)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--window", type=int, default=10, help="chunks that are looked at, eight tokens each")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rate", type=float, default=1e-3)
    given = parser.parse_args()
    if given.quick:
        given.seeds, given.traces, given.steps, given.batch, given.window = 1, 4, 10, 4, 6
    return given


if __name__ == "__main__":
    raise SystemExit(main())

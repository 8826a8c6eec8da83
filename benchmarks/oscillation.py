"""OFQ on a small vision transformer: 2-bit weights by learned steps (LSQ) or by statistics, with OFQ's two further parts.

    python benchmarks/oscillation.py             five seeds, OSCILLATION.md
    python benchmarks/oscillation.py --quick     one seed, a few steps; prints, writes nothing

Pictures of 4 x 4 patches hold two things, and the answer is on which side of the one the other lies (2 layers, 32 channels, 4
heads, learned positions, which are added before the first layer: none turns queries and keys apart). A whole model is trained,
then again from there with rounded matrices in its layers, the same pictures in the same order for all sides:

    LSQ      levels -2 to 1 of a step for each row, learned with the gradient of Esser et al. (arXiv:1902.08153)
    StatsQ   `ofq`'s rounding
    QKR      one rounded matrix a head instead of queries and keys (`tensors/query_key.py`); more weights, as published
    CGA      the last quarter of the steps, in which only undecided weights learn

The loss is cross entropy, and the whole model's answers. A weight oscillates if the mean over steps, with a memory of 100, of
"its code changed, against its last change" is above 0.005. Inputs of matrices are not rounded here. Models of the paper's size,
and pictures of the world, may answer otherwise.
"""

from collections.abc import Sequence
from statistics import fmean, stdev

import torch
import torch.nn.functional as F
from once import tried
from torch import Tensor, nn

from trimtab.core.places import Role, Site
from trimtab.core.seeds import Seeds
from trimtab.methods.tune.ofq import Annealed, StatsQ
from trimtab.tensors.query_key import joined, scores
from trimtab.tensors.through import through

SIDE, SEEN, WIDTH, HEADS, LAYERS, ANSWERS = 4, 8, 32, 4, 2, 4
BATCH, JUDGED, BITS, BORDER, ANNEALED = 64, 2000, 2, 0.005, 0.25
MEMORY, OFTEN, NOISE = 0.01, 0.005, 0.7
SIDES = ("LSQ", "StatsQ", "StatsQ, CGA", "StatsQ, QKR", "StatsQ, QKR, CGA")
Found = dict[str, tuple[float, float]]  # by side: share of right answers, share of weights that oscillate


class Whole(nn.Module):
    """A matrix that is not rounded."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight.clone())

    def matrix(self) -> Tensor:
        return self.weight


class Lsq(nn.Module):
    """Learned step size, a step for each row."""

    def __init__(self, weight: Tensor, bits: int):
        super().__init__()
        self.low, self.high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        self.weight = nn.Parameter(weight.clone())
        self.step = nn.Parameter(2 * weight.abs().mean(1, keepdim=True) / self.high**0.5)
        self.slower = (weight.shape[1] * self.high) ** -0.5  # as published, so that steps move no faster than weights

    def matrix(self) -> Tensor:
        step = through(self.step * self.slower, self.step.detach())
        units = (self.weight / step).clamp(self.low, self.high)
        return through(units, units.detach().round()) * step

    def codes(self) -> Tensor:
        return (self.weight / self.step).detach().clamp(self.low, self.high).round()


class Layer(nn.Module):
    """matrices: by name, of whatever rounding; with "qk" there are no "q" and "k"."""

    def __init__(self, matrices: dict[str, nn.Module]):
        super().__init__()
        self.matrices = nn.ModuleDict(matrices)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        matrix = {name: learner.matrix() for name, learner in self.matrices.items()}
        y = self.norms[0](x)
        if "qk" in matrix:
            logits = scores(y, y, matrix["qk"])
        else:
            query, key = ((y @ matrix[name].T).unflatten(-1, (HEADS, -1)).transpose(1, 2) for name in "qk")
            logits = query @ key.mT / query.shape[-1] ** 0.5
        value = (y @ matrix["v"].T).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        x = x + (logits.softmax(-1) @ value).transpose(1, 2).flatten(2) @ matrix["o"].T
        return x + F.gelu(self.norms[1](x) @ matrix["up"].T) @ matrix["down"].T


class Vision(nn.Module):
    def __init__(self, layers: Sequence[Layer]):
        super().__init__()
        self.first, self.last = nn.Linear(SEEN, WIDTH), nn.Linear(WIDTH, ANSWERS)
        self.place, self.norm = nn.Parameter(torch.zeros(SIDE**2, WIDTH)), nn.LayerNorm(WIDTH)
        self.layers = nn.ModuleList(layers)

    def forward(self, pictures: Tensor) -> Tensor:
        x = self.first(pictures) + self.place
        for layer in self.layers:
            x = layer(x)
        return self.last(self.norm(x).mean(1))


def pictures(count: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """[count, patches, channels] and the answers [count]: right, left, below or above of the first thing lies the second."""
    at = torch.rand(count, SIDE**2, generator=draw).argsort(1)[:, :2]
    found = NOISE * torch.randn(count, SIDE**2, SEEN, generator=draw)
    for thing in range(2):
        found[torch.arange(count), at[:, thing], thing] += 4.0
    down, right = (at[:, 1] // SIDE - at[:, 0] // SIDE), (at[:, 1] % SIDE - at[:, 0] % SIDE)
    aside = right.abs() >= down.abs()
    return found, torch.where(aside, (right < 0).long(), 2 + (down < 0).long())


def fresh(seed: int) -> Vision:
    seeds, shapes = Seeds(seed), {"q": (1, 1), "k": (1, 1), "v": (1, 1), "o": (1, 1), "up": (4, 1), "down": (1, 4)}
    layers = []
    for layer in range(LAYERS):
        drawn = {n: torch.randn(o * WIDTH, i * WIDTH, generator=seeds.at(layer, n)) for n, (o, i) in shapes.items()}
        layers.append(Layer({name: Whole(weight * weight.shape[1] ** -0.5) for name, weight in drawn.items()}))
    model = Vision(layers)
    with torch.no_grad():
        for name, parameter in [*model.first.named_parameters(), *model.last.named_parameters(), ("place", model.place)]:
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=seeds.at(name, len(parameter))))
    return model


def rounding(whole: Vision, side: str) -> Vision:
    """The same model with rounded matrices in its layers."""
    made = []
    for layer in whole.layers:
        weights = {name: matrix.weight.detach() for name, matrix in layer.matrices.items()}
        if "QKR" in side:
            weights = {"qk": joined(weights.pop("q"), weights.pop("k"), HEADS), **weights}
        made.append(Layer({n: Lsq(w, BITS) if side == "LSQ" else StatsQ(w, BITS) for n, w in weights.items()}))
    model = Vision(made)
    own = {name: value for name, value in whole.state_dict().items() if ".matrices." not in name}
    model.load_state_dict(own, strict=False)
    return model


class Oscillation:
    """Which codes go to and fro."""

    def __init__(self, learners: Sequence[Lsq | StatsQ]):
        self.learners, self.codes = learners, [learner.codes() for learner in learners]
        self.last, self.often = ([torch.zeros_like(codes) for codes in self.codes] for _ in range(2))

    def look(self) -> None:
        for number, learner in enumerate(self.learners):
            new = learner.codes()
            way = (new - self.codes[number]).sign()
            back = (way * self.last[number] < 0).float()
            self.often[number].lerp_(back, MEMORY)
            self.last[number] = torch.where(way != 0, way, self.last[number])
            self.codes[number] = new

    def share(self) -> float:
        return float(torch.cat([(often > OFTEN).flatten() for often in self.often]).float().mean())


def train(model: Vision, steps: int, seed: int, teacher: Vision | None = None, anneal: bool = False) -> float:
    """Share of weights that oscillate in the end. Pictures depend on the seed alone."""
    learners = [m for m in model.modules() if isinstance(m, Lsq | StatsQ)]
    places = {Site(str(n), Role.OTHER, (1, 1)): learner for n, learner in enumerate(learners) if isinstance(learner, StatsQ)}
    pupil, watched = Annealed(places, (), BORDER, 1 - ANNEALED), Oscillation(learners)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.0)
    slower = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=2e-4)
    draw = Seeds(seed).at("lessons", teacher is None)
    for step in range(steps):
        seen, answers = pictures(BATCH, draw)
        said = model(seen)
        loss = F.cross_entropy(said, answers)
        if teacher is not None:
            with torch.no_grad():
                wanted = teacher(seen).softmax(-1)
            loss = loss + F.cross_entropy(said, wanted)
        optimizer.zero_grad()
        loss.backward()
        for learner in learners:
            learner.progress = step / steps
        if anneal:
            pupil.before_update(step, optimizer)
        optimizer.step()
        slower.step()
        watched.look()
    return watched.share() if learners else 0.0


@torch.no_grad()
def right(model: Vision, seed: int) -> float:
    seen, answers = pictures(JUDGED, Seeds(seed).at("judged"))
    return float((model(seen).argmax(-1) == answers).float().mean())


def measured(seed: int, steps: int) -> Found:
    whole = fresh(seed)
    train(whole, steps, seed)
    found = {"not rounded": (right(whole, seed), 0.0)}
    for side in SIDES:
        model = rounding(whole, side)
        swinging = train(model, steps, seed, whole, "CGA" in side)
        found[side] = right(model, seed), swinging
    return found


def page(runs: Sequence[Found], steps: int) -> str:
    lines = [
        "# Weights that oscillate",
        "",
        f"Generated by `oscillation.py`, not edited by hand. {len(runs)} seeds, {steps} steps of {BATCH} pictures for the "
        f"whole model and again for each side, {JUDGED} pictures judged. {BITS}-bit weights in {LAYERS} layers. ± is the "
        "standard error over seeds; against LSQ: paired, by seed.",
        "",
        "| side | right | against LSQ | oscillating |",
        "|---|---|---|---|",
    ]
    for side in runs[0]:
        answers, swinging = ([run[side][number] for run in runs] for number in range(2))
        against = [run[side][0] - run["LSQ"][0] for run in runs]
        lines.append(f"| {side} | {shown(answers)} | {shown(against)} | {shown(swinging)} |")
    return "\n".join(lines) + "\n"


def shown(values: Sequence[float]) -> str:
    error = f" ± {stdev(values) / len(values) ** 0.5:.2%}" if len(values) > 1 else ""
    return f"{fmean(values):.2%}{error}"


def main() -> int:
    return tried(__doc__, __file__, "one seed and a few steps", tables)


def tables(quick: bool) -> str:
    steps = 60 if quick else 2000
    return page([measured(seed, steps) for seed in range(1 if quick else 5)], steps)


if __name__ == "__main__":
    raise SystemExit(main())

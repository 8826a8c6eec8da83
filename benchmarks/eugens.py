"""EUGens in the place of feed-forward layers: what a trained model's layers come to in closed form, at equal numbers.

    python benchmarks/eugens.py             the last third of the layers of asset:own-5m, some minutes
    python benchmarks/eugens.py --quick     little text; nothing is kept

A layer is y = T features(x), with features as in `trimtab/tensors/random_features.py`: drawn once and never stored, so that all
there is to it is T [out, 1 + degree * p]. T is a ridge regression of what the layer answers on the calibration text, block after
block, each shown what the layers replaced before it give. Beside it stand the best linear map of the rank with as many numbers,
fitted alike; the same with random numbers; and no layer at all. A linear map of all ranks says how far anything linear gets. What
training such layers from the first step comes to is a side of `scratch.py`.
"""

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from statistics import fmean
from typing import Any

import torch
from ledger import apart, row
from once import once, options
from torch import Tensor, nn

from trimtab.core.seeds import Seeds
from trimtab.tensors.random_features import features, projections

SHOWN, JUDGED, LENGTH = "asset:squad-drop", "asset:boolq", 256
RIDGE = 1e-3  # of the mean diagonal
SPREAD = 0.02  # of the last matrix, where nothing has been fitted
WIDTHS = (32, 64, 128)  # features of each degree of two


class Eugen(nn.Module):
    """y = T features(x / sqrt(size)). weight: T [size, features]."""

    def __init__(self, size: int, width: int, degree: int, generator: torch.Generator):
        super().__init__()
        self.size, self.degree = size, degree
        for power, rows in enumerate(projections(size, width, degree, generator), start=1):
            self.register_buffer(f"rows{power}", rows, persistent=False)
        self.weight = nn.Parameter(SPREAD * torch.randn(size, 1 + degree * width, generator=generator))

    def features(self, x: Tensor) -> Tensor:
        drawn = [getattr(self, f"rows{power}") for power in range(1, self.degree + 1)]
        return features(x / self.size**0.5, drawn)

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x) @ self.weight.T

    def fit(self, gram: Tensor, cross: Tensor) -> None:
        """gram [features, features] and cross [features, out]: sums over tokens."""
        self.weight.copy_(ridged(gram, cross)[1].T)


class Linear(nn.Module):
    """y = left right [x; 1], left [size, rank], right [rank, size + 1]."""

    def __init__(self, size: int, rank: int, generator: torch.Generator):
        super().__init__()
        self.left = nn.Parameter(SPREAD * torch.randn(size, rank, generator=generator))
        self.right = nn.Parameter(torch.randn(rank, size + 1, generator=generator) / (size + 1) ** 0.5)

    def features(self, x: Tensor) -> Tensor:
        return torch.cat([x, torch.ones_like(x[..., :1])], dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x) @ self.right.T @ self.left.T

    def fit(self, gram: Tensor, cross: Tensor) -> None:
        """The best of its rank: of the regression's answers those directions that have most energy."""
        gram, best = ridged(gram, cross)
        basis = torch.linalg.eigh(best.T @ gram @ best)[1][:, -len(self.right) :]
        self.left.copy_(basis)
        self.right.copy_((best @ basis).T)


class Nothing(nn.Module):
    """As if there were no layer."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


Made = Callable[[torch.Generator], nn.Module]


def sides(size: int) -> dict[str, tuple[Made, bool]]:
    """How a layer from and to `size` channels is made, and whether it is fitted; three groups of equal numbers."""
    found: dict[str, tuple[Made, bool]] = {"none": (lambda draw: Nothing(), False)}
    for width in WIDTHS:
        for degree in (1, 2):
            alone = 2 * width // degree
            found[f"degree {degree}, {alone} features each"] = (partial(Eugen, size, alone, degree), True)
        rank = size * (1 + 2 * width) // (2 * size + 1)
        found[f"linear, rank {rank}"] = (partial(Linear, size, rank), True)
        found[f"random, rank {rank}"] = (partial(Linear, size, rank), False)
    return {**found, "linear, all ranks": (partial(Linear, size, size), True)}


@torch.no_grad()
def fitted(layer: Eugen | Linear, body: nn.Module, replaced: nn.Module, ids: Tensor) -> None:
    """In closed form, to what the part of the body that is to be replaced answers on ids [windows, length]."""
    sums: list[Tensor] = []

    def seen(_: nn.Module, given: tuple[Tensor, ...], answer: Tensor) -> None:
        x, y = layer.features(given[0].flatten(0, 1)).double(), answer.flatten(0, 1).double()
        now = [x.T @ x, x.T @ y]
        sums[:] = [a + b for a, b in zip(sums, now, strict=True)] if sums else now

    hook = replaced.register_forward_hook(seen)
    try:
        for part in ids.split(8):
            body(part, use_cache=False)
    finally:
        hook.remove()
    layer.fit(*sums)


def ridged(gram: Tensor, cross: Tensor) -> tuple[Tensor, Tensor]:
    """The damped gram [features, features], and with it the regression [features, out]."""
    gram = gram + RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    return gram, torch.linalg.solve(gram, cross)


def measured(given: argparse.Namespace) -> dict[str, Any]:
    from trimtab.data.windows import calibration_windows, evaluation_windows
    from trimtab.host.checkpoint import load
    from trimtab.host.model_assets import resolve_model
    from trimtab.host.provenance import provenance
    from trimtab.measure.perplexity import token_losses

    torch.set_num_threads(given.threads)
    model, tokenizer = load(resolve_model(given.model))
    assert tokenizer is not None
    shown = calibration_windows(SHOWN, tokenizer, given.windows * LENGTH, LENGTH, given.seed)
    judged = evaluation_windows(JUDGED, tokenizer, given.judged_windows, LENGTH, 0)
    layers, size = model.model.layers, model.config.hidden_size
    blocks = range(len(layers) - max(1, len(layers) // 3), len(layers))
    before = [layers[number].mlp for number in blocks]
    found = {"as it came": {"losses": token_losses(model, judged).mean(1).tolist(), "numbers": _numbers(before[0])}}
    for name, (made, fits) in sides(size).items():
        for number in blocks:
            layer = made(Seeds(given.seed).at("eugens", str(number)))
            if fits:
                fitted(layer, model.model, layers[number].mlp, shown)
            layers[number].mlp = layer
        found[name] = {"losses": token_losses(model, judged).mean(1).tolist(), "numbers": _numbers(layer)}
        for number, mlp in zip(blocks, before, strict=True):
            layers[number].mlp = mlp
    setting = {"model": given.model, "windows": given.windows, "judged_windows": given.judged_windows, "seed": given.seed}
    return {**setting, "blocks": [*blocks], "sides": found, **provenance()}


def _numbers(layer: nn.Module) -> int:
    return sum(parameter.numel() for parameter in layer.parameters())


def page(found: Mapping[str, Any]) -> str:
    sides = found["sides"]
    rows = [
        "# Feed-forward layers as random features\n",
        f"Generated by `eugens.py` from `eugens.json`, not edited by hand. `{found['model']}`, blocks "
        f"{', '.join(map(str, found['blocks']))}, fitted to {found['windows']} x {LENGTH} tokens of `{SHOWN}` (seed "
        f"{found['seed']}), judged on {found['judged_windows']} x {LENGTH} tokens of `{JUDGED}`; differences are paired, in nats "
        "per token, with their 95 % interval. Numbers are those of a layer that are stored; features are drawn again from their "
        "seed.\n",
        "| layer | numbers | nats per token | more than the model as it came |",
        "|---|---|---|---|",
    ]
    whole = sides["as it came"]
    for name, side in sides.items():
        more = "" if side is whole else apart([side["losses"]], [whole["losses"]])
        rows.append(row((name, f"{side['numbers']:,}", f"{fmean(side['losses']):.4f}", more)))
    return "\n".join([*rows, ""])


def arguments() -> argparse.Namespace:
    parser = options(__doc__)
    parser.add_argument("--model", default="asset:own-5m")
    parser.add_argument("--windows", type=int, default=256, help="to fit to")
    parser.add_argument("--judged-windows", type=int, default=100)
    given = parser.parse_args()
    if given.quick:
        given.model, given.windows, given.judged_windows = "asset:own-2m", 8, 4
    return given


if __name__ == "__main__":
    once(__file__, arguments(), measured, page)

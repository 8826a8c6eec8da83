"""One side of a claim: what a recipe leaves of a model, measured on windows of text."""

import gc
from dataclasses import dataclass, field
from time import perf_counter

from torch import Tensor

from trimtab.core.errors import ModelError
from trimtab.core.progress import Watcher, unwatched
from trimtab.core.recipe import Calibration, Recipe
from trimtab.data.windows import evaluation_windows
from trimtab.host.checkpoint import load
from trimtab.host.compress import compress
from trimtab.host.kv.quantized import WHOLE
from trimtab.host.kv.reading import rounded_kv
from trimtab.measure.perplexity import token_losses
from trimtab.measure.size import bits_per_weight
from trimtab.tensors.products import fast_products


@dataclass(frozen=True)
class Setting:
    """On what a claim is decided. seeds: of the calibration sample and of everything random in the methods."""

    model: str = "asset:smollm2-135m"
    text: str = "asset:boolq"
    windows: int = 24
    length: int = 512
    calibration: Calibration = field(default_factory=lambda: Calibration(tokens=8192))
    seeds: tuple[int, ...] = (0, 1, 2)


@dataclass(frozen=True)
class Side:
    """losses: [windows] float64, mean nats per token. bits: per weight of the blocks. seeded: whether the seed mattered."""

    losses: Tensor
    bits: float
    seeded: bool
    seconds: float


def measure_side(folder: str, recipe: Recipe | None, setting: Setting, watch: Watcher = unwatched, kv_bits: int = WHOLE) -> Side:
    """Opens the model, compresses it unless `recipe` is None, and measures it on the setting's text.

    kv_bits: of the keys and values that it is read through, 2 to 8; 16: as they are.
    Raises what the recipe or the text raises; `ModelError` if the model has no tokenizer or its losses are not finite.
    """
    begun = perf_counter()
    model, tokenizer = load(folder)
    if tokenizer is None:
        raise ModelError(f"{folder} has no tokenizer; copy the tokenizer files of the original model into it")
    seeded = recipe is not None and compress(model, recipe, tokenizer=tokenizer, watch=watch).report.seeded
    windows = evaluation_windows(setting.text, tokenizer, setting.windows, setting.length, 0)
    with fast_products(), rounded_kv(model, kv_bits):
        losses = token_losses(model, windows).mean(1)
    bits = bits_per_weight(model)[0].value
    del model
    gc.collect()  # modules refer to each other in circles; a dozen models would fill the memory before Python noticed
    return Side(losses, bits, seeded, perf_counter() - begun)

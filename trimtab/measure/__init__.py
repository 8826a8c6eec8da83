"""What a model is worth, in numbers that carry their uncertainty and their setting."""

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trimtab.core.report import Measurement
from trimtab.data.windows import evaluation_windows

# Renamed, because these two names belong to the submodules here.
from trimtab.measure.perplexity import bits_per_byte, token_losses
from trimtab.measure.perplexity import perplexity as perplexity_of
from trimtab.measure.size import size as size_of
from trimtab.measure.speed import decode_speed, prefill_speed
from trimtab.measure.text_bytes import scored_bytes


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    source: str = "asset:boolq",
    windows: int = 24,
    length: int = 512,
    seed: int = 0,
    speed: bool = True,
) -> list[Measurement]:
    """Perplexity and bits per byte on `windows` windows of the source, size, and (if asked) prefill and decode speed.

    Raises DataError when the source is missing or too short, ModelError when the model's losses are not finite.
    """
    ids = evaluation_windows(source, tokenizer, windows, length, seed)  # [windows, length]
    losses = token_losses(model, ids)
    dtype = str(model.dtype).removeprefix("torch.")
    setting = {"source": source, "windows": windows, "length": length, "seed": seed, "dtype": dtype}
    found = [perplexity_of(losses, setting), bits_per_byte(losses, scored_bytes(tokenizer, ids), setting), *size_of(model)]
    if speed:
        found += [prefill_speed(model, ids[:1]), decode_speed(model, ids[:1, : min(32, length)])]
    return found

"""What a model says: for a person to look at, not a number."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.streamers import BaseStreamer

from trimtab.core.errors import UsageError
from trimtab.core.seeds import Seeds
from trimtab.host.kv.quantized import WHOLE, quantized_cache
from trimtab.measure.perplexity import evaluating
from trimtab.runtime.template import render

if TYPE_CHECKING:
    from trimtab.runtime import Sampling

PROMPTS = (
    "The capital of France is",
    "Water boils at a temperature of",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):\n",
)


def samples(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str] = PROMPTS, new_tokens: int = 32
) -> list[dict[str, str]]:
    """{"prompt", "text"} for every prompt, greedy: the same for the same model, so models can be read side by side."""
    return [{"prompt": prompt, "text": generate(model, tokenizer, prompt, new_tokens)} for prompt in prompts]


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    new_tokens: int = 64,
    seed: int | None = None,
    chat: bool = False,
) -> str:
    """The continuation of `prompt`, without the prompt. Greedy; with a seed, sampled from the model's own distribution.

    chat: put the prompt into the tokenizer's chat template. Raises UsageError if there is none, or nothing to continue.
    """
    chosen = LogitsProcessorList([] if seed is None else [_Sampling(seed)])
    said = _continued(model, _encode(tokenizer, prompt, chat), new_tokens, chosen)
    text: str = tokenizer.decode(said, skip_special_tokens=True)
    return text


def answer(
    model: PreTrainedModel,
    ids: Sequence[int],
    new_tokens: int,
    sampling: "Sampling",
    hear: Callable[[int], None],
    kv_bits: int = WHOLE,
) -> list[int]:
    """The ids that follow `ids`, each handed to `hear` as it is made. The same choices as the native session offers.

    kv_bits: of keys and values, 2 to 8; 16: as they come. Raises `UsageError`.
    """
    chosen = LogitsProcessorList()
    if sampling.temperature > 0:
        chosen.append(TemperatureLogitsWarper(float(sampling.temperature)))
        if sampling.top_k:
            chosen.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            chosen.append(TopPLogitsWarper(sampling.top_p))
        chosen.append(_Sampling(sampling.seed))
    more: dict[str, object] = {"streamer": _Listener(hear), "repetition_penalty": float(sampling.repetition_penalty)}
    if kv_bits != WHOLE:
        more["past_key_values"] = quantized_cache(model.config, kv_bits)
    return _continued(model, torch.tensor([list(ids)]), new_tokens, chosen, **more)


def _continued(model: PreTrainedModel, ids: Tensor, new_tokens: int, chosen: LogitsProcessorList, **more: object) -> list[int]:
    """ids: [1, length] int64."""
    ids = ids.to(model.device)
    with evaluating(model):
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=new_tokens,
            logits_processor=chosen,
            **more,
        )
    said: list[int] = out[0, ids.shape[1] :].tolist()
    return said


class _Listener(BaseStreamer):
    """Hands on every token that is made; the prompt comes through the same door first."""

    def __init__(self, hear: Callable[[int], None]):
        self.hear, self.begun = hear, False

    def put(self, value: Tensor) -> None:
        if self.begun:
            for id in value.reshape(-1).tolist():
                self.hear(id)
        self.begun = True

    def end(self) -> None:
        """Nothing is held back."""


class _Sampling(LogitsProcessor):
    """Adds Gumbel noise: the largest of logit + noise is a sample from the softmax. So no global generator is touched."""

    def __init__(self, seed: int):
        self.generator = Seeds(seed).at("generate")

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        uniform = torch.rand(scores.shape, generator=self.generator, dtype=torch.float64)
        noise = -torch.log(-torch.log(uniform.clamp_min(torch.finfo(torch.float64).tiny)))
        return scores + noise.to(scores.device, torch.float32)


def _encode(tokenizer: PreTrainedTokenizerBase, prompt: str, chat: bool) -> Tensor:
    if chat and not tokenizer.chat_template:
        raise UsageError("this tokenizer has no chat template; ask without chat")
    if chat:
        prompt = render(tokenizer.chat_template, [{"role": "user", "content": prompt}], tokenizer.special_tokens_map)
    # A template writes its special tokens itself.
    ids = tokenizer(prompt, add_special_tokens=not chat, return_tensors="pt")["input_ids"]
    if ids.shape[1] == 0:
        raise UsageError("the prompt is empty; give at least one word")
    return ids.long()

"""What a model says: for a person to look at, not a number."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from trimtab.core.errors import UsageError
from trimtab.core.seeds import Seeds
from trimtab.measure.perplexity import evaluating

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
    ids = _encode(tokenizer, prompt, chat).to(model.device)
    sampling = LogitsProcessorList([] if seed is None else [_Sampling(seed)])
    with evaluating(model):
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=new_tokens,
            logits_processor=sampling,
        )
    text: str = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    return text


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
        message = [{"role": "user", "content": prompt}]
        prompt = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    # A template writes its special tokens itself.
    ids = tokenizer(prompt, add_special_tokens=not chat, return_tensors="pt")["input_ids"]
    if ids.shape[1] == 0:
        raise UsageError("the prompt is empty; give at least one word")
    return ids.long()

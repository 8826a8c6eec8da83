"""What training lowers: sums over tokens of float32 nats, through which gradients flow."""

import torch
import torch.nn.functional as F
from torch import Tensor


def next_token(logits: Tensor, ids: Tensor, ignored: int = -100) -> Tensor:
    """Cross-entropy of every token but the first given those before it, summed.

    logits: [windows, length, vocabulary]; ids: [windows, length] int64, `ignored` where nothing is to be predicted.
    """
    labels = ids[:, 1:].flatten()
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels, ignore_index=ignored, reduction="sum")


def distilled(logits: Tensor, taught: Tensor, temperature: float = 1.0) -> Tensor:
    """temperature^2 KL(softmax(taught / temperature) || softmax(logits / temperature)), summed over all tokens but the last
    of each window, which predict what `next_token` does. [windows, length, vocabulary] each. Hinton et al., 2015.
    """
    student = (logits[:, :-1].flatten(0, 1).float() / temperature).log_softmax(-1)
    teacher = (taught[:, :-1].flatten(0, 1).float() / temperature).log_softmax(-1)
    return temperature**2 * F.kl_div(student, teacher, reduction="sum", log_target=True)


def predicted(logits: Tensor) -> Tensor:
    """Log-probabilities of every token but the first. [windows, length, vocabulary] -> [windows, length - 1, vocabulary]."""
    return logits[:, :-1].float().log_softmax(-1)


def apart(left: Tensor, right: Tensor) -> Tensor:
    """KL(left || right) of every token, nats. Log-probabilities [..., vocabulary] each -> [...]."""
    return (left.exp() * (left - right)).sum(-1)


def surprise(left: Tensor, right: Tensor) -> Tensor:
    """-sum p_left log p_right of every token, nats; of twice the same: its entropy. As for `apart`."""
    return -(left.exp() * right).sum(-1)


def strayed(hidden: Tensor, taught: Tensor) -> Tensor:
    """|h - t|^2 / |t|^2 of every token but the last of a window, summed. [windows, length, width] each.

    Relative, because the first token's states may be hundreds of times as large as the others'.
    """
    student, teacher = hidden[:, :-1].float(), taught[:, :-1].float()
    sizes = teacher.square().sum(-1).clamp_min(torch.finfo(torch.float32).tiny)
    return ((student - teacher).square().sum(-1) / sizes).sum()

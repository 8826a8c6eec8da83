"""A whole model folder in a second: a tiny model with a tokenizer that knows every byte, as transformers itself writes it."""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from trimtab.testing.tiny import tiny

SPECIAL = ("<pad>", "<bos>", "<eos>")  # at the ids that tiny models expect them


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, after three special ones; adds nothing of its own to a text."""
    names = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    pad, bos, eos = SPECIAL
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=pad, bos_token=bos, eos_token=eos)


def tiny_folder(path: str | Path, name: str = "llama", seed: int = 0, shard: str = "1GB", **overrides: Any) -> Path:
    """Saves `tiny(name, seed, **overrides)` with a byte tokenizer. shard: the largest size of one weight file."""
    tokenizer = byte_tokenizer()
    model = tiny(name, seed, **{"vocab_size": len(tokenizer), **overrides})
    model.save_pretrained(path, max_shard_size=shard)
    tokenizer.save_pretrained(path)
    return Path(path)

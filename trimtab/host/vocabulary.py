"""A byte-level vocabulary made from a text: every byte is in it, so every text can be written, and merges by frequency."""

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from trimtab.core.errors import DataError

END = "<end>"  # the only special token, id 0; packed windows never hold it


def trained_tokenizer(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level byte-pair encoding of exactly `vocabulary` entries; the same texts give the same one, whatever the threads.

    Adds nothing of its own to a text. Raises DataError when the texts have too few different pieces.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    if (size := backend.get_vocab_size()) != vocabulary:
        raise DataError(f"the text makes a vocabulary of {size}, {vocabulary} were asked for; give more text or ask for less")
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END)

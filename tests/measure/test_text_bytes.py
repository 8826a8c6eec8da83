"""Bytes per token add up to the bytes of the text."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from trimtab.measure.text_bytes import scored_bytes, token_bytes

TEXTS = ["plain words", "naïve café 日本語 😀", "  two  spaces\n\n\ttab ", "12345"]


@pytest.fixture(scope="module")
def piece_tokenizer() -> PreTrainedTokenizerFast:
    """SentencePiece style: U+2581 for spaces, bytes where a character is unknown."""
    fallback = [f"<0x{value:02X}>" for value in range(256)]
    letters = sorted(set("plainwordsnvecaftb12345ï") | {"▁"})
    vocabulary = {token: i for i, token in enumerate(["<unk>", *fallback, *letters, "▁▁", "or", "ï▁"])}
    merges = [("▁", "▁"), ("o", "r"), ("ï", "▁")]
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


@pytest.fixture(scope="module")
def merging_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level with merges, some of which end inside a character."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(TEXTS * 3, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")
    fast.add_tokens(["日本語"])
    return fast


@pytest.mark.parametrize("name", ["byte_tokenizer", "piece_tokenizer", "merging_tokenizer"])
@pytest.mark.parametrize("text", TEXTS)
def test_token_bytes_add_up_to_the_text(name: str, text: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(name)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert token_bytes(tokenizer)[ids].sum() == len(text.encode())


def test_special_tokens_are_no_text(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    assert token_bytes(byte_tokenizer)[byte_tokenizer.eos_token_id] == 0


def test_a_window_that_cuts_a_character_counts_its_bytes(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    ids = torch.tensor([byte_tokenizer("a😀b")["input_ids"]])  # 1 + 4 + 1 tokens of a byte each
    assert scored_bytes(byte_tokenizer, ids[:, :4]).tolist() == [3]
    assert scored_bytes(byte_tokenizer, ids[:, 2:]).tolist() == [3]

"""How many bytes of text a token stands for, exactly.

Decoding window by window is not exact: a window may begin or end inside a character, which decodes to a replacement
character of another length. So bytes are counted token by token, from the vocabulary, and add up to the text's own bytes.
"""

import re

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def scored_bytes(tokenizer: PreTrainedTokenizerBase, windows: Tensor) -> Tensor:
    """[n] int64: bytes of all tokens but the first of each window, the ones that have a loss. windows: [n, length]."""
    return token_bytes(tokenizer)[windows[:, 1:]].sum(dim=1)


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """[vocabulary] int64: UTF-8 bytes that each id adds to the text. Special tokens add none.

    A tokenizer that puts a space of its own before every document has that byte counted.
    """
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    count = _byte_level if _is_byte_level(tokenizer) else _piece
    literal, special = set(tokenizer.get_added_vocab().values()), set(tokenizer.all_special_ids)
    sizes = [
        0 if index in special or token is None else len(token.encode()) if index in literal else count(token)
        for index, token in enumerate(tokens)
    ]
    return torch.tensor(sizes, dtype=torch.int64)


def _is_byte_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Byte-level vocabularies write every byte as one printable character, a space as the letter below."""
    return tokenizer.convert_tokens_to_string(["a", "Ġ", "a"]) == "a a"


def _byte_level(token: str) -> int:
    return len(token)


def _piece(token: str) -> int:
    """SentencePiece: a space is written U+2581, a byte outside of the vocabulary <0xHH>."""
    return 1 if BYTE.fullmatch(token) else len(token.replace("\u2581", " ").encode())

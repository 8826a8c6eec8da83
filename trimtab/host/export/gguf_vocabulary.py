"""A tokenizer as GGUF holds it: tokens with their kinds, merges, and the name of the rule that cuts text into words.

Rules are code in llama.cpp and have names there, so a tokenizer is written only if its rule is one of those known here, and
refused otherwise: under another name the file would open and read text differently. Only byte-level byte-pair encoding is
written.
"""

import json
from collections.abc import Mapping
from typing import Any

import gguf

from trimtab.core.errors import ModelError

Kind = gguf.TokenType
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
RULES: Mapping[tuple[str, ...], str] = {
    ("bytes with words",): "gpt-2",
    ("digits", "bytes with words"): "smollm",
    (QWEN, "bytes"): "qwen2",
    (LLAMA3, "bytes"): "llama-bpe",
}
SPECIAL = ("bos", "eos", "pad", "unk")


def add_vocabulary(writer: gguf.GGUFWriter, tokenizer: Any, size: int) -> None:
    """size: rows of the embedding; numbers without a token are filled up. Raises `ModelError` for what cannot be said."""
    if tokenizer is None:
        writer.add_tokenizer_model("no_vocab")
        return
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    _check_model(described)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_rule(described))
    tokens, kinds = _tokens(described, size)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(_merges(described, tokens))
    for name in SPECIAL:
        number = getattr(tokenizer, f"{name}_token_id", None)
        if number is not None:
            getattr(writer, f"add_{name}_token_id")(number)
    writer.add_add_bos_token(_adds_bos(tokenizer))
    writer.add_add_space_prefix(False)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def check_vocabulary(tokenizer: Any, size: int) -> None:
    """Raises `ModelError` for a tokenizer that cannot be written."""
    if tokenizer is not None:
        described = json.loads(tokenizer.backend_tokenizer.to_str())
        _check_model(described)
        _rule(described)
        _tokens(described, size)


def _check_model(described: Mapping[str, Any]) -> None:
    model = described["model"]
    if model["type"] != "BPE" or model.get("byte_fallback") or described["decoder"].get("type") != "ByteLevel":
        raise ModelError(f"gguf: trimtab writes byte-level BPE tokenizers, this one is {model['type']}")
    if described.get("normalizer") is not None and described["normalizer"].get("type") != "NFC":
        raise ModelError(f"gguf: llama.cpp has no normalizer {described['normalizer'].get('type')!r:.40}")


def _rule(described: Mapping[str, Any]) -> str:
    found = tuple(_steps(described["pre_tokenizer"] or {"type": "none"}))
    if found not in RULES:
        raise ModelError(f"gguf: llama.cpp has no name that trimtab knows for how this tokenizer cuts words: {found!r:.200}")
    return RULES[found]


def _steps(rule: Mapping[str, Any]) -> list[str]:
    match rule:
        case {"type": "Sequence", "pretokenizers": parts}:
            return [step for part in parts for step in _steps(part)]
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": words}:
            return ["bytes with words" if words else "bytes"]
        case {"type": "Digits", "individual_digits": True}:
            return ["digits"]
        case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}:
            return [pattern]
        case _:
            return [json.dumps(rule)]


def _tokens(described: Mapping[str, Any], size: int) -> tuple[list[str], list[int]]:
    by_number = {number: (text, Kind.NORMAL) for text, number in described["model"]["vocab"].items()}
    for added in described["added_tokens"]:
        by_number[added["id"]] = (added["content"], Kind.CONTROL if added["special"] else Kind.USER_DEFINED)
    if by_number and max(by_number) >= size:
        raise ModelError(f"gguf: the tokenizer has a token number {max(by_number)}, the embedding {size} rows")
    filled = [by_number.get(number, (f"[PAD{number}]", Kind.UNUSED)) for number in range(size)]
    return [text for text, _ in filled], [int(kind) for _, kind in filled]


def _merges(described: Mapping[str, Any], tokens: list[str]) -> list[str]:
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in described["model"]["merges"]]
    # A file without merges does not open. This pair makes no token, so it is taken apart again.
    return pairs or ["! !" if "!!" not in tokens else "~ ~"]


def _adds_bos(tokenizer: Any) -> bool:
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]

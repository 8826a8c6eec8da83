"""The tokenizer in a GGUF file: the inverse of `host.export.gguf_vocabulary`, and transformers' own reader for other kinds.

A byte-level BPE tokenizer is rebuilt from its tokens, merges and the name of the rule that cuts words, the same names as there.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from trimtab.core.errors import ModelError
from trimtab.host.export.gguf_vocabulary import RULES
from trimtab.host.imports.gguf_config import SPECIAL

Kind = gguf.TokenType
OURS = "gpt2"


def tokenizer_of(file: Path, values: Mapping[str, Any]) -> Any:
    """values: the keys of the file. None where it has no tokenizer. Raises `ModelError` where it cannot be read."""
    kind = values.get("tokenizer.ggml.model")
    if kind in (None, "no_vocab", "none"):
        return None
    try:
        if kind == OURS and values.get("tokenizer.ggml.pre") in RULES.values():
            return _bytes(values)
        return AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever goes wrong here, the reason is the file
        raise ModelError(f"the tokenizer in {file} ({kind!r:.20}) cannot be read: {str(error)[:200]}") from error


def _bytes(values: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    tokens = values["tokenizer.ggml.tokens"]
    kinds = values.get("tokenizer.ggml.token_type") or [Kind.NORMAL] * len(tokens)
    vocabulary = {text: number for number, (text, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind != Kind.UNUSED}
    pairs = [tuple(pair.split(" ", 1)) for pair in values.get("tokenizer.ggml.merges", [])]
    merges = [pair for pair in pairs if {*pair, "".join(pair)} <= vocabulary.keys()]
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    made.pre_tokenizer = _cut(values["tokenizer.ggml.pre"])
    made.decoder = decoders.ByteLevel()
    for text, kind in zip(tokens, kinds, strict=True):
        if kind in (Kind.CONTROL, Kind.USER_DEFINED):
            made.add_tokens([AddedToken(text, special=kind == Kind.CONTROL, normalized=False)])
    names = {ours.removesuffix("_id"): tokens[values[key]] for ours, key in SPECIAL.items() if key in values}
    if values.get("tokenizer.ggml.add_bos_token") and "bos_token" in names:
        bos = names["bos_token"]
        made.post_processor = processors.TemplateProcessing(f"{bos} $A", special_tokens=[(bos, vocabulary[bos])])
    return PreTrainedTokenizerFast(tokenizer_object=made, chat_template=values.get("tokenizer.chat_template"), **names)


def _cut(name: str) -> Any:
    """The rule that llama.cpp has this name for."""
    steps = next(steps for steps, called in RULES.items() if called == name)
    made = [_step(step) for step in steps]
    return made[0] if len(made) == 1 else pre_tokenizers.Sequence(made)


def _step(step: str) -> Any:
    if step == "digits":
        return pre_tokenizers.Digits(individual_digits=True)
    if step in ("bytes", "bytes with words"):
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=step != "bytes")
    return pre_tokenizers.Split(Regex(step), "isolated")

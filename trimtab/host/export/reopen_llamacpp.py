"""Opens a GGUF file with llama.cpp, in a process of its own that never imports trimtab, and says what it says.

Run as a file: one line of JSON on stdin, {"folder", "gguf", "ids" (lists of token ids), "logits" (a path), "texts",
"new_tokens"}. Writes float32 [tokens, vocabulary] of all prompts, one after the other. Answers on stdout {"opened_by",
"tokens" (the ids of each text), "said" (for each prompt the `new_tokens` ids that greedy decoding goes on with)}.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import llama_cpp as api
import numpy as np

MOST = 1 << 16  # bytes of a text


class Opened:
    """The model and a context as long as the longest prompt with its answer; everything else as it comes."""

    def __init__(self, file: Path, length: int):
        self.model = api.llama_model_load_from_file(str(file).encode(), api.llama_model_default_params())
        if not self.model:
            raise SystemExit("llama.cpp cannot open the file")
        self.vocabulary = api.llama_model_get_vocab(self.model)
        given = api.llama_context_default_params()
        given.n_ctx = given.n_batch = given.n_ubatch = max(64, length)
        self.context = api.llama_init_from_model(self.model, given)
        if not self.context:
            raise SystemExit("llama.cpp makes no context for the model")

    def tokens(self, text: str) -> list[int]:
        """Ids of a text, without anything added."""
        raw = text.encode()
        held = (api.llama_token * MOST)()
        count = api.llama_tokenize(self.vocabulary, raw, len(raw), held, MOST, False, False)
        return list(held[: max(0, count)])

    def logits(self, ids: list[int]) -> Any:
        """[tokens, vocabulary], read one token at a time, as decoding does."""
        self._forget()
        return np.stack([self._read(one).copy() for one in ids])

    def said(self, ids: list[int], count: int) -> list[int]:
        """What greedy decoding goes on with."""
        self._forget()
        for one in ids[:-1]:
            self._read(one)
        answer, last = [], ids[-1]
        for _ in range(count):
            last = int(self._read(last).argmax())
            answer.append(last)
        return answer

    def _forget(self) -> None:
        api.llama_memory_clear(api.llama_get_memory(self.context), True)

    def _read(self, token: int) -> Any:
        held = (api.llama_token * 1)(token)
        if api.llama_decode(self.context, api.llama_batch_get_one(held, 1)):
            raise SystemExit("llama.cpp cannot go on")
        row = api.llama_get_logits_ith(self.context, -1)
        return np.ctypeslib.as_array(row, (api.llama_vocab_n_tokens(self.vocabulary),))


def main() -> None:
    task = json.loads(sys.stdin.readline())
    count = task["new_tokens"]
    model = Opened(Path(task["folder"]) / task["gguf"], max(map(len, task["ids"])) + count)
    np.save(task["logits"], np.concatenate([model.logits(ids) for ids in task["ids"]]))
    answer = {
        "opened_by": f"llama.cpp (llama-cpp-python {version('llama-cpp-python')})",
        "tokens": [model.tokens(text) for text in task["texts"]],
        "said": [model.said(ids, count) for ids in task["ids"]] if count else [],
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()

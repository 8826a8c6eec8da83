"""What llama.cpp gives the tokens of some windows. Runs in an environment of its own and imports no trimtab.

Run as a file: one line of JSON on stdin, {"model" (a GGUF file), "windows" (an .npy file of token ids [n, length])}. Answers on
stdout {"losses"} : nats of every token but the first of each window, [n, length - 1].
"""

import json
import sys
from typing import Any

import llama_cpp as api
import numpy as np


def main() -> None:
    task = json.loads(sys.stdin.readline())
    windows = np.load(task["windows"])
    model = api.llama_model_load_from_file(task["model"].encode(), api.llama_model_default_params())
    if not model:
        raise SystemExit("llama.cpp cannot open the file")
    given = api.llama_context_default_params()
    given.n_ctx = given.n_batch = given.n_ubatch = windows.shape[1]
    context = api.llama_init_from_model(model, given)
    vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
    print(json.dumps({"losses": [losses(context, row.tolist(), vocabulary) for row in windows]}))


def losses(context: Any, ids: list[int], vocabulary: int) -> list[float]:
    """Nats of each token after the first, given those before it."""
    api.llama_memory_clear(api.llama_get_memory(context), True)
    batch = api.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for place, token in enumerate(ids):
        batch.token[place], batch.pos[place], batch.logits[place] = token, place, 1
        batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
    if api.llama_decode(context, batch):
        raise SystemExit("llama.cpp cannot read the window")
    found = []
    for place, wanted in enumerate(ids[1:]):
        row = np.ctypeslib.as_array(api.llama_get_logits_ith(context, place), (vocabulary,)).astype(np.float64)
        top = row.max()
        found.append(float(top + np.log(np.exp(row - top).sum()) - row[wanted]))
    api.llama_batch_free(batch)
    return found


if __name__ == "__main__":
    main()

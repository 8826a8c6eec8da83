"""llama.cpp's side of the comparison. Runs in an environment of its own and imports no trimtab.

Everything as it comes: default buffers (which repack what its kernels want repacked), default attention, a batch of 512.
"""

import argparse
import ctypes
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import llama_cpp as api
import numpy as np
from answering import Answer, resident, serve

CONTEXT, BATCH = 1024, 512
FORMATS = {
    "q4_0": api.LLAMA_FTYPE_MOSTLY_Q4_0,
    "q8_0": api.LLAMA_FTYPE_MOSTLY_Q8_0,
    "q2_k": api.LLAMA_FTYPE_MOSTLY_Q2_K,
    "q3_k": api.LLAMA_FTYPE_MOSTLY_Q3_K_S,
    "tq2_0": api.LLAMA_FTYPE_MOSTLY_TQ2_0,
}


class LlamaCpp:
    """One model and its context; commands as `answering.serve` takes them."""

    def load(self, path: str, threads: int) -> Answer:
        begun = perf_counter()
        self.model = api.llama_model_load_from_file(path.encode(), api.llama_model_default_params())
        if not self.model:
            raise RuntimeError(f"{Path(path).name} cannot be opened")
        self.vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model))
        given = api.llama_context_default_params()
        given.n_ctx, given.n_batch, given.n_ubatch = CONTEXT, BATCH, BATCH
        given.n_threads = given.n_threads_batch = threads
        self.context = api.llama_init_from_model(self.model, given)
        if not self.context:
            raise RuntimeError("no context")
        return {
            "seconds": perf_counter() - begun,
            "resident": resident(),
            "kernel": _extensions(),
            "versions": {"llama-cpp-python": version("llama-cpp-python")},
        }

    def threads(self, count: int) -> Answer:
        api.llama_set_n_threads(self.context, count, count)
        return {}

    def prefill(self, ids: list[int]) -> Answer:
        self._forget()
        begun = perf_counter()
        self._read(ids)
        return {"seconds": perf_counter() - begun}

    def decode(self, ids: list[int], new_tokens: int) -> Answer:
        self._forget()
        self._read(ids)
        said = [self._likeliest()]
        begun = perf_counter()
        for _ in range(new_tokens):
            self._read(said[-1:])
            said.append(self._likeliest())
        return {"seconds": perf_counter() - begun, "ids": said}

    def logits(self, ids: list[int], target: str) -> Answer:
        """[tokens, vocabulary] float32, of every position, one token at a time: as decoding computes them."""
        self._forget()
        rows = []
        for one in ids:
            self._read([one])
            rows.append(self._row().copy())
        np.save(target, np.stack(rows))
        return {}

    def _forget(self) -> None:
        api.llama_memory_clear(api.llama_get_memory(self.context), True)

    def _read(self, ids: list[int]) -> None:
        tokens = (api.llama_token * len(ids))(*ids)
        code = api.llama_decode(self.context, api.llama_batch_get_one(tokens, len(ids)))
        if code:
            raise RuntimeError(f"llama_decode says {code}")
        self._row()  # waits for the result

    def _row(self) -> Any:
        row = api.llama_get_logits_ith(self.context, -1)
        return np.ctypeslib.as_array(row, (self.vocabulary,))

    def _likeliest(self) -> int:
        return int(self._row().argmax())


def quantize(source: str, target: str, kind: str, threads: int) -> Answer:
    """Every matrix in one format, the embedding included, as far as its width allows."""
    given = api.llama_model_quantize_default_params()
    given.ftype, given.pure, given.nthread = FORMATS[kind], True, threads
    code = api.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(given))
    if code:
        raise RuntimeError(f"llama_model_quantize says {code}")
    return {}


def _extensions() -> str:
    """What it was built for, of "CPU : SSE3 = 1 | AVX = 1 | ..."."""
    said = api.llama_print_system_info().decode()
    pairs = (part.split("=") for part in said.replace("CPU :", "").split("|") if "=" in part)
    return " ".join(name.strip() for name, value in pairs if value.strip() == "1" and name.strip().startswith(("AVX", "AMX")))


def main() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    side = LlamaCpp()
    names = ("load", "threads", "prefill", "decode", "logits")
    serve({**{name: getattr(side, name) for name in names}, "quantize": quantize})


if __name__ == "__main__":
    main()

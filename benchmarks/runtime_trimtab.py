"""trimtab's side of the comparison: the native session. Imports no torch, as users' runs do not."""

import argparse
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import numpy as np
from answering import Answer, resident, serve

from trimtab import __version__
from trimtab.runtime import Batch, Runtime, Sampling


class Trimtab:
    """One model and its session; commands as `answering.serve` takes them."""

    def load(self, path: str, threads: int, head_bits: int | None = None) -> Answer:
        begun = perf_counter()
        self.runtime = Runtime.open(Path(path), threads=threads, head_bits=head_bits)
        self.session = self.runtime.session()
        return {
            "seconds": perf_counter() - begun,
            "resident": resident(),
            "kernel": self.runtime.kernel,
            "bytes_per_token": self.runtime.bytes_per_token,
            "versions": {"trimtab": __version__},
        }

    def threads(self, count: int) -> Answer:
        self.runtime = replace(self.runtime, threads=count)  # the same weights
        self.session = self.runtime.session()
        return {}

    def prefill(self, ids: list[int]) -> Answer:
        self.session.reset()
        begun = perf_counter()
        self.session.prefill(ids)
        return {"seconds": perf_counter() - begun}

    def decode(self, ids: list[int], new_tokens: int) -> Answer:
        self.session.reset()
        first = int(np.argmax(self.session.prefill(ids)))
        begun = perf_counter()
        said = [first, *self.session.generate([first], new_tokens, Sampling())]
        return {"seconds": perf_counter() - begun, "ids": said}

    def batch(self, ids: list[int], new_tokens: int, count: int) -> Answer:
        """Several conversations together, with prompts of different lengths."""
        together = Batch(self.runtime, count)
        first = [int(np.argmax(each.prefill(ids[: len(ids) - i % 4]))) for i, each in enumerate(together.sessions)]
        begun = perf_counter()
        said = sum(1 for _ in together.generate([[id] for id in first], new_tokens))
        return {"seconds": perf_counter() - begun, "tokens": said}

    def logits(self, ids: list[int], target: str) -> Answer:
        """[tokens, vocabulary] float32, of every position, one token at a time: as decoding computes them."""
        self.session.reset()
        np.save(target, np.stack([np.array(self.session.step(one)) for one in ids]))
        return {}


def main() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    side = Trimtab()
    serve({name: getattr(side, name) for name in ("load", "threads", "prefill", "decode", "batch", "logits")})


if __name__ == "__main__":
    main()

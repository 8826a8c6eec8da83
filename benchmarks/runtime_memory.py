"""How fast this machine reads: the bound that decoding is held against, measured in turn with it."""

import argparse
from time import perf_counter

import numpy as np
import trimtab_native
from answering import Answer, serve

READ = 1 << 29  # bytes: several times any cache
LASTS = 0.3  # seconds, about: as long as the decoding that it is held against, since what the machine gives changes meanwhile


class Memory:
    """A buffer of random bytes and the widest loads that there are; commands as `answering.serve` takes them."""

    def load(self, bytes: int = READ) -> Answer:
        self.buffer = np.random.default_rng(0).integers(0, 256, bytes, dtype=np.uint8)
        self.instructions = trimtab_native.instruction_sets()[-1]
        return {}

    def read(self, threads: int) -> Answer:
        begun, taken, size = perf_counter(), 0.0, 0
        while taken < LASTS:
            trimtab_native.read(self.buffer, self.instructions, threads)
            taken, size = perf_counter() - begun, size + self.buffer.size
        return {"seconds": taken, "bytes": size}


def main() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    memory = Memory()
    serve({"load": memory.load, "read": memory.read})


if __name__ == "__main__":
    main()

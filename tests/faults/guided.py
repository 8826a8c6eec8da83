"""Fuzzing that follows what the code does with an input, for the two readers of bytes: GGUF and safetensors headers.

Needs atheris, which is no dependency: `pip install --target FOLDER atheris`, then, with FOLDER in PYTHONPATH,
`python tests/faults/guided.py EXECUTIONS`. Appends one line per reader to the ledger; a fault ends the run.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

import atheris

with atheris.instrument_imports(
    include=["trimtab.host.gguf_checks", "trimtab.host.folder_checks", "trimtab.host.tensor_file", "trimtab.runtime.folder"]
):
    import trimtab.host.folder_checks
    import trimtab.host.gguf_checks
    import trimtab.host.tensor_file
    import trimtab.runtime.folder  # noqa: F401

import guard
import parsers
from campaign import LEDGER, line

from trimtab.host.provenance import provenance
from trimtab.measure.ledger import append

READERS = {"GGUF header": "F", "safetensors header": "E"}


def main(name: str, executions: int) -> None:
    """Never returns: the library ends the process."""
    parser, tally, start = parsers.PARSERS[name], guard.Tally(), time.process_time()
    place = Path(tempfile.mkdtemp(dir="/dev/shm"))

    def one(data: bytes) -> None:
        outcome = tally.add("guided", guard.judged(lambda: parser.read(data, place)))
        if outcome.kind == guard.FAULT or tally.cases == executions:
            found = line(READERS[name], f"guided by coverage: {name}", tally)
            seconds = round(time.process_time() - start, 1)
            append({"run": "guided", **found, "cpu_seconds": seconds, "seed": 1, **provenance()}, LEDGER)
            print(found, data[:200] if outcome.kind == guard.FAULT else "", flush=True)
            os._exit(outcome.kind == guard.FAULT)

    corpus = Path(tempfile.mkdtemp())
    for number, seed in enumerate(parsers.unchanged(parser)):
        (corpus / str(number)).write_bytes(seed)
    atheris.Setup([sys.argv[0], str(corpus), "-seed=1", "-max_len=4096", "-verbosity=0"], one)
    atheris.Fuzz()


if __name__ == "__main__":
    for reader in READERS:
        child = os.fork()
        if not child:
            main(reader, int(sys.argv[1]))
        os.waitpid(child, 0)

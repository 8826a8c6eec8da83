"""Models that run without torch: a folder is opened in a moment, and all between two tokens is compiled code.

`Runtime.open(folder)` reads a model folder, packed or plain, into `trimtab_native`; a `Session` is one conversation with it,
a `Batch` several at a time.
What it does not cover it refuses with `Unsupported`, and the caller goes on with transformers. Nothing here imports torch or
transformers: importing them takes longer than the first hundred tokens of a small model.
"""

from trimtab.runtime.batch import Batch
from trimtab.runtime.errors import Unsupported
from trimtab.runtime.runtime import Runtime, Sampling, Session

__all__ = ["Batch", "Runtime", "Sampling", "Session", "Unsupported"]

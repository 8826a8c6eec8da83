"""Our entry in transformers' table must also come about when our own module is what first pulls transformers in."""

import trimtab.host.quantizer  # noqa: F401 - first of all imports, before transformers

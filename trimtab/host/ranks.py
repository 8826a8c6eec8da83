"""Several processes that train one model together, as `torchrun` and `accelerate launch` start them."""

import os


def is_first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return os.environ.get("RANK", "0") == "0"


def processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))

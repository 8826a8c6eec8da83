"""How far something has come when a part of the way is behind: from 0 at the beginning to 1 at the end."""


def between(done: float, begin: float, end: float) -> float:
    """0 up to `begin`, 1 from `end` on, and the straight line between. done: fraction of the whole way."""
    return min(1.0, max(0.0, (done - begin) / (end - begin))) if end > begin else float(done >= end)


def cubic(done: float) -> float:
    """1 - (1 - done)^3: quick at first, slow where most is gone. Zhu & Gupta, 2017 (arXiv:1710.01878)."""
    return 1 - (1 - done) ** 3

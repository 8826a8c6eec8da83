"""Selection in stages: how much of the text each reads, and what that comes to."""

from collections.abc import Sequence

import torch

Stages = Sequence[tuple[float, int]]


def parse_stages(value: str) -> list[tuple[float, int]]:
    """(share of the windows, survivors) of every stage but the last, from `0.125:4,0.5:2`; "" is none. Raises ValueError."""
    stages = [(float(share), int(count)) for share, _, count in (word.partition(":") for word in value.split(",") if value)]
    shares, survivors = [share for share, _ in stages], [count for _, count in stages]
    rising = shares == sorted(shares) and all(0 < share <= 1 for share in shares)
    if not rising or survivors != sorted(survivors, reverse=True) or not all(count >= 1 for count in survivors):
        raise ValueError(f"{value!r:.80} is no list of stages; write rising shares and falling survivors, such as 0.125:4,0.5:2")
    return stages


def read_by(stages: Stages, stage: int, windows: int) -> int:
    """How many windows a stage reads; the last one, which is not among `stages`, reads all."""
    return max(1, round(stages[stage][0] * windows)) if stage < len(stages) else windows


def draw_windows(stages: Stages, stage: int, windows: int, draw: torch.Generator) -> list[int]:
    """The windows that a stage reads, another draw every time."""
    count = read_by(stages, stage, windows)
    return sorted(torch.randperm(windows, generator=draw)[:count].tolist()) if count < windows else list(range(windows))


def effort(stages: Stages, offspring: int, generations: int, windows: int) -> tuple[int, int]:
    """(candidates judged, windows read) at most. On the last stage only children are new, and the first parent."""
    judged = [offspring, *(min(survivors, offspring) for _, survivors in stages)]
    read = sum(count * read_by(stages, stage, windows) for stage, count in enumerate(judged))
    return generations * sum(judged) + 1, generations * read + windows

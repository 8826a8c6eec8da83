"""What each of several players is worth to a team, asked for in small windows of the line they stand in.

phi_i = sum over S without i of |S|! (w - |S| - 1)! / w! * (v(S + i) - v(S))   among the w players of i's window, others there.
With a window of all players that is the Shapley value (Shapley, 1953); with w it takes players * 2^w values at most, and fewer
since windows overlap. (Sun et al., 2025, arXiv:2505.01731.)
"""

from collections.abc import Callable, Sequence
from itertools import combinations
from math import factorial

Absent = frozenset[int]


def window_of(player: int, players: int, width: int) -> range:
    """The `width` neighbours around a player, himself included; at the ends of the line it is shifted."""
    width = min(width, players)
    start = min(max(player - width // 2, 0), players - width)
    return range(start, start + width)


def coalitions(players: int, width: int) -> list[Absent]:
    """Who is absent, for every value that `windowed_shapley` asks for; each once, in a fixed order."""
    windows = dict.fromkeys(window_of(player, players, width) for player in range(players))
    found = {frozenset(c): None for w in windows for size in range(len(w) + 1) for c in combinations(w, size)}
    return list(found)


def windowed_shapley(players: int, width: int, values: Callable[[Sequence[Absent]], Sequence[float]]) -> list[float]:
    """Of every player. values: of teams, each told by who is absent; all are asked for at once."""
    asked = coalitions(players, width)
    value = dict(zip(asked, values(asked), strict=True))
    return [_share(player, window_of(player, players, width), value) for player in range(players)]


def _share(player: int, window: Sequence[int], value: dict[Absent, float]) -> float:
    others, w = [other for other in window if other != player], len(window)
    total = 0.0
    for size in range(w):
        weight = factorial(size) * factorial(w - size - 1) / factorial(w)
        for team in combinations(others, size):
            absent = frozenset(others) - frozenset(team)
            total += weight * (value[absent] - value[absent | {player}])
    return total

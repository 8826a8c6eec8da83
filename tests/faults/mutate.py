"""Inputs that are almost right: bytes that were damaged, and JSON in which one thing is another.

Everything is drawn from a generator that the caller hands in, so that an input is found again by its seed and number.
"""

import copy
import json
from random import Random
from typing import Any

HUGE = 10**400
DEPTHS = (3, 12, 300, 900, 100_000)
NASTY: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 255, 256, 65535, 2**31, 2**31 - 1, 2**32, 2**53, 2**63, 2**64, 10**18, HUGE, -HUGE),
    *(0.0, -0.0, 0.5, 1e-300, 1e308, -1e308, "", "a", "\0", "\n", "\ud800", "../x", "/etc/passwd", "x" * 5000, "\x1b[2J"),
    *("os.system", "__class__", "NaN", "model.layers.0", "F32", "I4", "dense", "sum", "grouped", "*", "[", "(a+)+$"),
    *([], {}, [[]], [0], [None], ["a", "a"], [1, 2, 3], [-1, -1], [2**40, 2**40], {"": {}}, {"kind": "dense"}, [{}] * 70),
)
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63 - 1, 2**63, 2**64 - 1)


def damaged(data: bytes, draw: Random) -> bytes:
    """One to four changes of bytes."""
    made = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4))):
        draw.choice((_flip, _cut, _zero, _repeat, _number, _swap, _insert))(made, draw)
    return bytes(made)


def damaged_json(value: Any, draw: Random) -> bytes:
    """One to three changes of the structure, written as JSON; now and then bytes are damaged too."""
    value = copy.deepcopy(value)
    for _ in range(draw.choice((1, 1, 2, 3))):
        value = _changed(value, draw)
    text = json.dumps(value, allow_nan=True).encode()
    for depth in DEPTHS:
        text = text.replace(f'"@{depth}@"'.encode(), b"[" * depth + b"]" * depth)
    if draw.random() < 0.1:
        text = text.replace(b":", b":" + draw.choice((b"NaN,", b"1e999,", b"-", b"1" * 5000, b"[" * 900)), 1)
    return damaged(text, draw) if draw.random() < 0.15 else text


def places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything inside."""
    found: list[tuple[Any, Any]] = []
    left = [value]
    while left:
        here = left.pop()
        keys = list(here) if isinstance(here, dict) else range(len(here)) if isinstance(here, list) else ()
        found += [(here, key) for key in keys]
        left += [here[key] for key in keys]
    return found


def _changed(value: Any, draw: Random) -> Any:
    inside = places(value)
    if not inside or draw.random() < 0.01:
        return copy.deepcopy(draw.choice(NASTY))
    holder, key = draw.choice(inside)
    what = draw.random()
    if what < 0.6:
        holder[key] = copy.deepcopy(draw.choice(NASTY))
    elif what < 0.75:
        del holder[key]
    elif what < 0.85:
        other, name = draw.choice(inside)
        if name in other if isinstance(other, dict) else isinstance(name, int) and name < len(other):
            holder[key] = copy.deepcopy(other[name])
    elif what < 0.95 and isinstance(holder, dict):
        holder[draw.choice(("", "a\nb", "__class__", "x" * 300, f"{key}_", "\x1b[31m"))] = copy.deepcopy(draw.choice(NASTY))
    else:
        holder[key] = f"@{draw.choice(DEPTHS)}@"  # too deep for a writer of JSON: put in when the rest is text
    return value


def _at(made: bytearray, draw: Random) -> int:
    return draw.randrange(len(made) + 1) if made else 0


def _flip(made: bytearray, draw: Random) -> None:
    if made:
        made[draw.randrange(len(made))] ^= 1 << draw.randrange(8)


def _cut(made: bytearray, draw: Random) -> None:
    del made[_at(made, draw) :]


def _zero(made: bytearray, draw: Random) -> None:
    start = _at(made, draw)
    made[start : start + 16] = bytes(len(made[start : start + 16]))


def _repeat(made: bytearray, draw: Random) -> None:
    start = _at(made, draw)
    piece = made[start : start + draw.randrange(1, 64)]
    made[start:start] = piece * draw.choice((1, 2, 50))


def _number(made: bytearray, draw: Random) -> None:
    start, width = _at(made, draw), draw.choice((1, 2, 4, 8))
    made[start : start + width] = (draw.choice(NUMBERS) & (256**width - 1)).to_bytes(width, "little")


def _swap(made: bytearray, draw: Random) -> None:
    one, other, width = _at(made, draw), _at(made, draw), draw.randrange(1, 16)
    if one + width <= other:
        made[one : one + width], made[other : other + width] = made[other : other + width], made[one : one + width]


def _insert(made: bytearray, draw: Random) -> None:
    start = _at(made, draw)
    made[start:start] = draw.choice((b"{", b"[", b'"', b":", b",", b"\xff\xfe", b"\0\0\0", b"- ", b"&a ", b"!!int ", b"1" * 40))

"""How numbers are written: as many digits as the interval allows, a unit, and what the number rests on."""

from math import floor, isfinite, log10, nan

from trimtab.report.document import SHARE, Estimate
from trimtab.report.reading import shown as readable

SPACE = "\N{NARROW NO-BREAK SPACE}"
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
MINUS = "\N{MINUS SIGN}"
UNKNOWN = "\N{EN DASH}"
MOST_DECIMALS = 6
DIGITS = 4  # where nothing is known of the error
UNITS = ("bytes", "kB", "MB", "GB", "TB")


def figure(value: float, half: float = nan) -> str:
    """half: half the 95 % interval, of which two digits are kept; without one the number gets four digits."""
    if not isfinite(value):
        return UNKNOWN
    if abs(value) >= 1e7:
        return _scientific(value)
    if half > 0 and isfinite(half):
        return _grouped(value, 1 - floor(log10(half)))
    return _grouped(value, DIGITS - 1 - floor(log10(abs(value))) if value else 0, trimmed=True)


def signed(value: float, half: float = nan) -> str:
    """With + or a true minus."""
    text = figure(value, half)
    return f"+{text}" if value > 0 else text


def count(n: int) -> str:
    """12264 -> '12 264', with a space that does not break."""
    return f"{n:,}".replace(",", SPACE)


def roughly(value: float) -> str:
    """Two digits, for numbers whose error nobody knows."""
    if not isfinite(value) or value == 0:
        return figure(value)
    power = floor(log10(abs(value)))
    return _scientific(value, 1) if not -5 < power < 7 else _grouped(value, 1 - power)


def size(count: float) -> str:
    """1234567 -> '1.235 MB'; decimal units."""
    if not isfinite(count):
        return UNKNOWN
    power = min(max(floor(log10(count) / 3), 0), len(UNITS) - 1) if count >= 1 else 0
    value = count / 1000**power
    return f"{value:.{DIGITS - len(str(int(value))) if power else 0}f}{SPACE}{UNITS[power]}"


def round_size(count: float) -> str:
    """A size on an axis: '100 MB'."""
    digits, _, unit = size(count).partition(SPACE)
    return f"{float(digits):g}{SPACE}{unit}" if unit else digits


def percent(value: float, half: float = nan) -> str:
    """0.4567 -> '45.7 %'."""
    return f"{figure(100 * value, 100 * half)}{SPACE}%" if isfinite(value) else UNKNOWN


def points(value: float, half: float = nan) -> str:
    """A difference of shares: 'points' of a percentage."""
    return f"{signed(100 * value, 100 * half)} points" if isfinite(value) else UNKNOWN


def shown(estimate: Estimate) -> str:
    """The number with its unit, where the unit says more than the heading does."""
    if estimate.unit == SHARE:
        return percent(estimate.value, estimate.half)
    if estimate.unit == "bytes":
        return size(estimate.value)
    text = figure(estimate.value, estimate.half)
    return f"{text}{SPACE}{estimate.unit}" if estimate.is_known and estimate.unit not in ("", "per token") else text


def interval(estimate: Estimate) -> str:
    """'31.1 to 37.8'; empty where there is none, or nothing uncertain."""
    if not isfinite(estimate.half) or estimate.half <= 0 or not estimate.is_known:
        return ""
    if estimate.unit == SHARE:
        low, high = (figure(100 * end, 100 * estimate.half) for end in (estimate.low, estimate.high))
        return f"{low} to {high}{SPACE}%"
    return f"{figure(estimate.low, estimate.half)} to {figure(estimate.high, estimate.half)}"


def rests_on(estimate: Estimate) -> str:
    """'n = 12 264 tokens'; empty for a number that is not known."""
    return from_n(estimate.n, estimate.of) if estimate.is_known else ""


def from_n(n: int, of: str) -> str:
    return f"n{SPACE}={SPACE}{observations(n, of)}"


def observations(n: int, of: str) -> str:
    """'12 264 tokens', '1 file'."""
    said = count(n) if n < 10**7 else f"{figure(n / 1e6)} million"
    return f"{said} {of.removesuffix('s') if n == 1 else of}".rstrip()


def difference(estimate: Estimate) -> str:
    """'+0.532 nats/token', '-3.1 points'."""
    if estimate.unit == SHARE:
        return points(estimate.value, estimate.half)
    text = signed(estimate.value, estimate.half)
    return f"{text} {estimate.unit}".rstrip() if estimate.is_known else text


def difference_interval(estimate: Estimate) -> str:
    """'+0.481 to +0.583'."""
    if not isfinite(estimate.half) or not estimate.is_known:
        return ""
    scale = 100 if estimate.unit == SHARE else 1
    return " to ".join(signed(scale * end, scale * estimate.half) for end in (estimate.low, estimate.high))


def listed(value: object) -> str:
    """A JSON value in words: a list without brackets."""
    return readable(" ".join(map(str, value)) if isinstance(value, list | tuple) else str(value))


def _grouped(value: float, decimals: int, trimmed: bool = False) -> str:
    text = f"{abs(value):,.{min(max(decimals, 0), MOST_DECIMALS)}f}"
    if trimmed and "." in text:
        text = text.rstrip("0").rstrip(".")
    sign = MINUS if value < 0 and text.strip("0.,") else ""
    return sign + text.replace(",", SPACE)


def _scientific(value: float, decimals: int = 2) -> str:
    digits, _, power = f"{value:.{decimals}e}".partition("e")
    return f"{digits}×10{str(int(power)).translate(RAISED)}".replace("-", MINUS)

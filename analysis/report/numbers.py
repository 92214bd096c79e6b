"""Numbers as a reader wants them."""

import math
from typing import Any, cast

import pandas as pd


def missing(value: object) -> bool:
    """Whether there is no value: None, or pandas' or a float's way of saying so."""
    return value is None or bool(pd.isna(cast(Any, value)))


def number(value: object, digits: int = 3) -> str:
    """Three decimals for the size of a loss or a share; what is much smaller or larger in significant digits."""
    if missing(value):
        return ""
    x = float(cast(Any, value))
    if math.isinf(x):
        return "∞" if x > 0 else "−∞"
    small = x != 0 and abs(x) < 0.5 * 10**-digits
    text = f"{x:.{digits}g}" if small or abs(x) >= 1e4 else f"{x:.{digits}f}"
    return text.replace("-", "−")


def signed(value: float) -> str:
    return ("+" if value > 0 else "") + number(value)


def whole(value: object) -> str:
    """An integer with thin spaces between thousands."""
    if missing(value):
        return ""
    return f"{round(float(cast(Any, value))):,}".replace(",", "\u202f")


def size(num_bytes: object) -> str:
    """Bytes in the largest binary unit that leaves a number of at least 1."""
    if missing(num_bytes):
        return ""
    x, units = float(cast(Any, num_bytes)), ["B", "KiB", "MiB", "GiB", "TiB"]
    while x >= 1024 and len(units) > 1:
        x, units = x / 1024, units[1:]
    return f"{x:.0f} {units[0]}" if units[0] == "B" else f"{x:.3g} {units[0]}"


def listed(words: list[str], most: int = 6) -> str:
    """A, B and C; beyond `most` the number of the others."""
    if len(words) > most:
        words = [*words[: most - 1], f"{len(words) - most + 1} more"]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""


def runs_of(num: int) -> str:
    return f"{num} run{'' if num == 1 else 's'}"

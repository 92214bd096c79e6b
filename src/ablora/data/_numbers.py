"""Numbers in text: finding them, and comparing them as numbers rather than as spellings."""

from __future__ import annotations

import re
from decimal import Decimal

# The digits are spelt out because \d also matches other scripts' digits.
NUMBER = r"[-+]?(?:[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+)"


def plain(number: str) -> str:
    """A matched number without thousands separators and plus sign: "+1,080" -> "1080"."""
    return number.replace(",", "").removeprefix("+")


def as_number(text: str) -> Decimal | None:
    """The value of a text that is one number, else None."""
    return Decimal(plain(text.strip())) if re.fullmatch(NUMBER, text.strip()) else None


def last_number(text: str) -> str:
    """The last number of a text, "" if it has none."""
    found = re.findall(NUMBER, text)
    return plain(found[-1]) if found else ""


def same_number(left: str, right: str, tolerance: Decimal = Decimal(0)) -> bool:
    """Whether both are numbers and differ by at most the tolerance: "72" and "72.0" do."""
    a, b = as_number(left), as_number(right)
    return a is not None and b is not None and abs(a - b) <= tolerance

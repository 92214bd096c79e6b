"""Chooses items by a hash of their content: the choice survives reordering of the file, and smaller choices nest."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TypeVar

from ablora.data._base import DataError

T = TypeVar("T")


def hold_out(items: Sequence[T], key: Callable[[T], str], count: int, part: str) -> tuple[list[T], list[T]]:
    """Split off `count` items for `part`, as (rest, held), both in the order given.

    Items go by the rank of sha256(part, key), so neither their order nor later truncation moves one across. Items of
    equal key go together; a group that would overshoot is passed over. DataError if nothing would remain.
    """
    if count >= len(items):
        legal = f"1 to {len(items) - 1}" if len(items) > 1 else "none, for one row cannot be split"
        raise DataError(f"{part}: {count} items asked for, {len(items)} rows to take them from; legal: {legal}")
    groups: dict[str, list[int]] = defaultdict(list)
    for index, item in enumerate(items):
        groups[key(item)].append(index)
    held: set[int] = set()
    for name in sorted(groups, key=lambda name: _rank(part, name)):
        if len(held) + len(groups[name]) <= count:
            held.update(groups[name])
        if len(held) == count:
            break
    return [x for i, x in enumerate(items) if i not in held], [x for i, x in enumerate(items) if i in held]


def sample(items: Sequence[T], key: Callable[[T], str], count: int | None, part: str) -> list[T]:
    """At most `count` items (None: all) by the rank of sha256(part, key), in the order given.

    Not the first rows: a file may be sorted by task or length. The choice of n items contains every smaller choice.
    """
    if count is None or count >= len(items):
        return list(items)
    order = sorted(range(len(items)), key=lambda i: _rank(part, key(items[i])))
    return [items[i] for i in sorted(order[:count])]


def _rank(part: str, key: str) -> bytes:
    return hashlib.sha256(f"{part}\x1f{key}".encode()).digest()

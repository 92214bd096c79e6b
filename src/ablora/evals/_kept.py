"""What an evaluation has found so far, so that one that is stopped goes on where it was."""

from collections.abc import Callable, Sequence
from typing import Any

Write = Callable[[int, int, Sequence[Any]], None]
"""Told the member, its first new item's place and its new values, before the next batch begins."""


class Kept:
    """Values by member and item, in the items' order, added batch by batch.

    An evaluation whose items stand for themselves takes its members' first `len(found[i])` items as done; any other
    only calls `pause` between batches and begins anew. A batch is cut the same whether or not the ones before it were
    found in this process, so that going on changes no number.
    """

    def __init__(
        self,
        found: Sequence[Sequence[Any]],
        pause: Callable[[], None] = lambda: None,
        write: Write = lambda member, at, values: None,
    ):
        self.found = [list(values) for values in found]
        self.pause = pause
        """Raises where the process was asked to stop; may be called as often as once per token."""
        self._write = write

    def add(self, values: Sequence[Sequence[Any]]) -> None:
        """What a batch gave, by member; then a pause."""
        for member, (mine, new) in enumerate(zip(self.found, values, strict=True)):
            if new:
                self._write(member, len(mine), new)
                mine.extend(new)
        self.pause()


def nothing(members: int) -> Kept:
    """Nothing found yet, kept nowhere, and nobody asks to stop."""
    return Kept([[] for _ in range(members)])

"""Caches: content-addressed files that any process may make, one lock rule for all.

The rule: read without a lock (a file appears whole, by rename); to make or extend a file, hold `<file>.lock`, look
again, make it aside, rename. A file that fails its own check is never used and never replaced silently: it says that
a disk is not to be trusted, which the user should hear of.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

from ablora.store.atomic import replace

T = TypeVar("T")
_WATCHED: ContextVar[dict[Path, bool] | None] = ContextVar("watched", default=None)


def fetch(path: Path, read: Callable[[Path], T | None], make: Callable[[], Callable[[Path], None]]) -> T:
    """What `path` holds, made first if `read` finds nothing (None) that serves.

    `read` raises Corrupted for a file that fails its check. `make` computes and returns a function that writes.
    """
    if path.exists() and (found := read(path)) is not None:
        _note(path, made=False)
        return found
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if path.exists() and (found := read(path)) is not None:
            _note(path, made=False)
            return found
        replace(path, make())
        _note(path, made=True)
        found = read(path)
        assert found is not None, f"{path}: what was just made does not serve"
        return found


@contextmanager
def watched() -> Iterator[dict[Path, bool]]:
    """The files that are fetched within it, and whether each was made then."""
    found: dict[Path, bool] = {}
    token = _WATCHED.set(found)
    try:
        yield found
    finally:
        _WATCHED.reset(token)


def _note(path: Path, made: bool) -> None:
    if (found := _WATCHED.get()) is not None:
        found[path] = found.get(path, False) or made

"""Caches: content-addressed files that any process may make, one lock rule for all.

The rule: read without a lock (a file appears whole, by rename); to make or extend a file, hold `<file>.lock`, look
again, make it aside, rename. A file that fails its own check is never used and never replaced silently: it says that
a disk is not to be trusted, which the user should hear of.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

from ablora.store.atomic import replace

T = TypeVar("T")


def fetch(path: Path, read: Callable[[Path], T | None], make: Callable[[], Callable[[Path], None]]) -> T:
    """What `path` holds, made first if `read` finds nothing (None) that serves.

    `read` raises Corrupted for a file that fails its check. `make` computes and returns a function that writes.
    """
    if path.exists() and (found := read(path)) is not None:
        return found
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if path.exists() and (found := read(path)) is not None:
            return found
        replace(path, make())
        found = read(path)
        assert found is not None, f"{path}: what was just made does not serve"
        return found

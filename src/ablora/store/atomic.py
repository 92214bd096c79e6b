"""Write aside, then rename: a reader sees the old file or the new one, never a half."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ablora.spec import BadInput


class Corrupted(BadInput):
    """A file of ours that cannot be read: names the file, what was found, and what to do."""


def replace(path: Path, write: Callable[[Path], None], durable: bool = True) -> None:
    """Give `path` the content that `write` puts into a file beside it; on any error `path` is as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".aside")
    os.close(handle)
    aside = Path(name)
    try:
        write(aside)
        if durable:
            with aside.open("rb") as file:
                os.fsync(file.fileno())
        aside.chmod(0o666 & ~_umask())
        aside.rename(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def clear(folder: Path) -> None:
    """Remove what a writer that was killed left aside in a folder, or below it, whose one writer the caller is."""
    for aside in folder.rglob(".*.aside"):
        aside.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str, durable: bool = True) -> None:
    def write(aside: Path) -> None:
        aside.write_text(text, encoding="utf-8", newline="\n")

    replace(path, write, durable)


def write_json(path: Path, value: Any) -> None:
    """`value` as JSON; not-a-number has no place in it (`null` stands for a value that does not exist)."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """What `write_json` wrote; a file that is no JSON is named, never guessed at."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise Corrupted(str(path), _start(path), f"JSON ({error}); move the file away to go on without it") from error


def _start(path: Path) -> str:
    return path.read_bytes()[:40].decode("utf-8", "replace")

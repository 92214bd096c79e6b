"""JSON lines: append by one writer, read past a torn last line, cut back to a step after a resume."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ablora.store.atomic import Corrupted, write_text


def dumps(record: dict[str, Any]) -> str:
    return json.dumps(record, allow_nan=False, ensure_ascii=False)


def append(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Add one line per record."""
    text = "".join(dumps(record) + "\n" for record in records)
    with path.open("a", encoding="utf-8", newline="\n") as file:
        file.write(text)


def write(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Replace the whole file."""
    write_text(path, "".join(dumps(record) + "\n" for record in records))


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The records in order. A last line without its newline was cut by a dying writer and is left out;
    any other line that is no JSON is an error that names it."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith("\n"):
                return
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise Corrupted(f"{path}:{number}", line[:40], f"a JSON object ({error.msg})") from error


def keep(path: Path, wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Keep only the wanted records, and drop a torn last line; an absent file stays absent."""
    if path.exists():
        write(path, [record for record in read(path) if wanted(record)])

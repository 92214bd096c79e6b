"""Reads rows from JSON files, so that every complaint can say where the row is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from ablora.data._base import DataError


class Readable(Protocol):
    """A file on disk (`Path`) or in an installed package (`importlib.resources`)."""

    @property
    def name(self) -> str: ...

    def read_bytes(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Row:
    """One record of a file: where it is (for messages), its index from 0, and its fields."""

    where: str
    index: int
    fields: dict[str, Any]

    def text(self, field: str) -> str:
        """The field as text; DataError if it is absent, not text, or blank."""
        value = self.fields.get(field)
        if not isinstance(value, str) or not value.strip():
            found = "is missing" if field not in self.fields else f"is {value!r}"
            raise DataError(f"{self.where}: field {field!r} {found}; it must be a text that is not blank")
        return value

    def optional_text(self, field: str) -> str:
        """The field as text, "" if it is absent or null; DataError if it is something else."""
        value = self.fields.get(field)
        if value is not None and not isinstance(value, str):
            raise DataError(f"{self.where}: field {field!r} is {value!r}; it must be a text, or left out")
        return value or ""


def read_json_lines(file: Readable) -> list[Row]:
    """Rows of a JSON Lines file (UTF-8, one object per line, blank lines ignored)."""
    rows: list[Row] = []
    # Split at newlines only: str.splitlines would also cut at U+2028, which JSON allows inside a string.
    for number, line in enumerate(_text(file).split("\n"), start=1):
        if line.strip():
            where = f"{file}:{number}"
            rows.append(_row(where, len(rows), _parse(line, where)))
    return _not_empty(rows, file)


def read_json_list(file: Readable) -> list[Row]:
    """Rows of a JSON file that is one list of objects; messages count its rows from 1."""
    found = _parse(_text(file), str(file))
    if not isinstance(found, list):
        raise DataError(f"{file}: holds a JSON {type(found).__name__}; it must be a list of objects")
    return _not_empty([_row(f"{file}: row {i + 1}", i, value) for i, value in enumerate(found)], file)


def fingerprint(files: Iterable[Readable]) -> str:
    """sha256 over the contents of the files, in the order given; neither names nor paths enter."""
    total = hashlib.sha256()
    for file in files:
        total.update(digest(file))
    return total.hexdigest()


def digest(file: Readable) -> bytes:
    """sha256 of one file; a file that has not changed on disk is read once per process, not once per planned run."""
    if not isinstance(file, Path) or not file.is_file():
        return hashlib.sha256(file.read_bytes()).digest()
    found = file.stat()
    return _digest_of(file, found.st_size, found.st_mtime_ns, found.st_ino)


@lru_cache(maxsize=256)
def _digest_of(file: Path, size: int, mtime_ns: int, inode: int) -> bytes:
    return hashlib.sha256(file.read_bytes()).digest()


def refuse_repeats(rows: Sequence[Row], field: str) -> None:
    """DataError if two rows hold the same text (up to case and spacing) in the field."""
    first: dict[str, Row] = {}
    for row in rows:
        earlier = first.setdefault(folded(row.text(field)), row)
        if earlier is not row:
            shown = row.text(field)[:60]
            raise DataError(
                f"{row.where}: field {field!r} repeats {earlier.where} ({shown!r}...); each {field} must occur once, "
                "or an item would be trained on and tested on, or counted twice"
            )


def folded(text: str) -> str:
    """The text without differences of case and spacing, for comparing items."""
    return " ".join(text.split()).casefold()


def given_path(dataset: str, path: str | None, wanted: str) -> Path:
    """The path that the user gave, or DataError that says what to give."""
    if path is None:
        raise DataError(f"dataset {dataset}: field 'path' is not set; give dataset.path={wanted}")
    found = Path(path).expanduser()
    if not found.exists():
        raise DataError(f"dataset {dataset}: path {path!r} does not exist; give dataset.path={wanted}")
    return found


def first_present(dataset: str, folder: Path, names: Sequence[str]) -> Path:
    """The first of the named files that the folder has, or DataError naming all that were looked for."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    looked = " or ".join(str(folder / name) for name in names)
    raise DataError(f"dataset {dataset}: looked for {looked}: not there; give dataset.path=FOLDER")


def _text(file: Readable) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: byte {error.start} is not UTF-8; the file must be UTF-8 text") from error


def _parse(text: str, where: str) -> Any:
    if not text.strip():
        raise DataError(f"{where}: is empty; it must hold at least one row")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = where if text.count("\n") == 0 else f"{where}:{error.lineno}"
        raise DataError(f"{place}: invalid JSON at column {error.colno}: {error.msg}") from error


def _row(where: str, index: int, value: Any) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{where}: holds a JSON {type(value).__name__} ({str(value)[:40]}); a row must be an object")
    return Row(where, index, value)


def _not_empty(rows: list[Row], file: Readable) -> list[Row]:
    if not rows:
        raise DataError(f"{file}: is empty; it must hold at least one row")
    return rows

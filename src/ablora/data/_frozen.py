"""Data files that ship with the package: they are those released, or nobody reads them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable

from ablora.data._base import DataError
from ablora.data._rows import digest


def frozen_folder() -> Traversable:
    """Where the frozen files lie in the installed package."""
    return files("ablora.data") / "frozen"


def checked_files(folder: Traversable, names: Sequence[str], sums: str) -> tuple[Traversable, ...]:
    """The named files in a folder, checked against its sums (in sha256sum's form); DataError names one that differs."""
    try:
        lines = (folder / sums).read_text(encoding="utf-8").splitlines()
        found = {name: digest(folder / name).hex() for name in names}
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror}); install the package again") from error
    wanted = {name: digest for digest, name in (line.split() for line in lines)}
    for name in names:
        if found[name] != wanted.get(name):
            raise DataError(
                f"{folder / name}: sha256 is {found[name]}, {sums} says {wanted.get(name)}; the frozen problems "
                "must be those released: restore the file (a checkout that rewrites line ends also changes it)"
            )
    return tuple(folder / name for name in names)

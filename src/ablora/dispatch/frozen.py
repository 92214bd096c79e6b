"""The code that jobs import: a copy of this checkout, by content, so that editing on does not change queued jobs."""

import hashlib
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from ablora.spec import BadInput

MOST_MIB = 256
"""More than that is somebody's data, and would be copied at every change of the code."""
INSTALLED = ("ablora", "ablora_analysis", "hydra_plugins")
UNLISTED = ("src", "conf", "sweeps", "analysis")
"""What jobs need of a checkout without git; there may be an environment and runs beside it."""


class Content(NamedTuple):
    """A file's bytes, or what a link points to. Read once: what is hashed is what is copied."""

    is_link: bool
    data: bytes


def freeze(into: Path) -> Path:
    """The folder for the front of PYTHONPATH, below `into`/<hash>; equal code is one folder, made by rename.

    A checkout is copied as git sees it: tracked files as they lie on disk, and untracked ones that are not ignored.
    """
    source = Path(sys.modules["ablora"].__file__ or "").resolve().parents[1]
    root = source.parent if source.name == "src" else source
    contents = _read(root, sorted(_listed(root) if (root / ".git").exists() else _walked(source, root)))
    target = into / _digest(contents)
    if not target.exists():
        aside = into / f".{target.name}-{uuid.uuid4().hex}"
        _write(aside, contents)
        try:
            aside.rename(target)
        except OSError:  # another process was first
            shutil.rmtree(aside)
    return target / source.relative_to(root)


def _listed(root: Path) -> Iterator[Path]:
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", b"").decode(errors="replace").strip() or str(error)
        legal = f"a checkout that git can list, so that the code of jobs can be frozen: {said}"
        raise BadInput("cluster", "slurm", legal) from error
    found = (root / os.fsdecode(name) for name in set(listed.split(b"\0")) if name)
    yield from (path for path in found if path.is_symlink() or path.is_file())  # neither deleted ones nor submodules


def _walked(source: Path, root: Path) -> Iterator[Path]:
    for top in UNLISTED if source != root else INSTALLED:
        for folder, folders, names in os.walk(root / top):
            yield from (Path(folder) / name for name in names if "__pycache__" not in folder)
            yield from (Path(folder) / name for name in folders if (Path(folder) / name).is_symlink())


def _read(root: Path, files: list[Path]) -> dict[str, Content]:
    sizes = {path: path.lstat().st_size for path in files}
    if sum(sizes.values()) > MOST_MIB * 2**20:
        largest = max(sizes, key=lambda path: sizes[path]).relative_to(root)
        legal = f"a checkout of at most {MOST_MIB} MiB, which is copied for the jobs; its largest file is {largest}"
        raise BadInput("cluster", "slurm", f"{legal} (what is no code belongs into .gitignore)")
    return {
        str(path.relative_to(root)): Content(True, os.fsencode(os.readlink(path)))
        if path.is_symlink()
        else Content(False, path.read_bytes())
        for path in files
    }


def _digest(contents: Mapping[str, Content]) -> str:
    digest = hashlib.sha256()
    for name, (is_link, data) in contents.items():
        digest.update(f"{name}\0{is_link}\0{len(data)}\n".encode())
        digest.update(data)
    return digest.hexdigest()[:16]


def _write(into: Path, contents: Mapping[str, Content]) -> None:
    for name, (is_link, data) in contents.items():
        path = into / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if is_link:
            path.symlink_to(os.fsdecode(data))
        else:
            path.write_bytes(data)

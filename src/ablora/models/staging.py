"""A base on a node's own disk: copied once for all processes there, and the shared folder where that cannot be.

ABLORA_STAGE/ablora-<uid>/<hash>/            the base's files, and stage.json, which has their content; made by rename
ABLORA_STAGE/ablora-<uid>/<hash>.lock        held by the process that copies
The hash is of the folder's path and its files' names, sizes and times: a base that changes is another copy. A run's
identity is its base's content, which is read from the copy, so that a copy of anything else would be refused.
"""

import hashlib
import os
import shutil
import socket
import sys
import uuid
from functools import cache
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

from ablora.models.content import content_of, files_of, read
from ablora.store import atomic

STAGE = "ABLORA_STAGE"
OTHER_FORMS = frozenset((".bin", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".ot", ".pt", ".pth"))
"""The same weights once more, which are never read."""
RECORD = "stage.json"


class Unstaged(Exception):  # noqa: N818 -- what happened
    """Why there is no copy that serves."""


class _Source(NamedTuple):
    """A base's folder as it is now."""

    folder: Path
    files: tuple[tuple[str, int, int], ...]
    """Name, size, and time of the last change."""

    @property
    def name(self) -> str:
        return hashlib.sha256(repr((str(self.folder.resolve()), self.files)).encode()).hexdigest()[:16]

    @property
    def size(self) -> int:
        return sum(size for _, size, _ in self.files)


def near(folder: Path) -> Path:
    """Where a base's folder is read from: its copy on this node, if ABLORA_STAGE asks for one and it can be made."""
    wanted = os.environ.get(STAGE)
    return _near(_source(folder), wanted) if wanted else folder


@cache
def _near(source: _Source, wanted: str) -> Path:
    try:
        return _staged(source, _place(wanted))
    except (OSError, Unstaged, atomic.Corrupted) as error:
        print(f"ablora: {source.folder} is read where it is and not from {wanted} on {socket.gethostname()}: {error}",
              file=sys.stderr, flush=True)  # fmt: skip
        return source.folder


def _source(folder: Path) -> _Source:
    found = (file for file in sorted(folder.iterdir()) if file.suffix not in OTHER_FORMS and file.is_file())
    return _Source(folder, tuple((file.name, (stat := file.stat()).st_size, stat.st_mtime_ns) for file in found))


def _place(wanted: str) -> Path:
    """This user's own folder there: what another user put into a folder that all may write to is not taken."""
    top = os.path.expanduser(os.path.expandvars(wanted))
    if not top.startswith("/") or "$" in top:
        raise Unstaged(f"{top} is no absolute path here")
    mine = Path(top) / f"ablora-{os.getuid()}"
    mine.mkdir(mode=0o700, parents=True, exist_ok=True)
    if mine.is_symlink() or mine.stat().st_uid != os.getuid():
        raise Unstaged(f"{mine} belongs to somebody else")
    return mine


def _staged(source: _Source, place: Path) -> Path:
    """The copy, made under the lock by the first process that comes; every process checks it by its content."""
    copy = place / source.name
    with FileLock(place / f"{source.name}.lock"):
        if not _is_whole(source, copy):
            shutil.rmtree(copy, ignore_errors=True)
            _copy(source, copy)
    if content_of(copy) != atomic.read_json(copy / RECORD)["content"]:
        raise Unstaged(f"{copy} does not read as it was written; remove it, and do not trust the disk")
    return copy


def _is_whole(source: _Source, copy: Path) -> bool:
    """Whether all of it is there: nodes have programs that remove what is old, file by file."""
    sizes = ((copy / name, size) for name, size, _ in source.files)
    return (copy / RECORD).exists() and all(file.exists() and file.stat().st_size == size for file, size in sizes)


def _copy(source: _Source, to: Path) -> None:
    for left in to.parent.glob(f".{to.name}-*"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    free = shutil.disk_usage(to.parent).free
    if source.size > free:
        raise Unstaged(f"the disk is full: {free / 2**30:.1f} GiB are left, and the base has {source.size / 2**30:.1f}")
    aside = to.parent / f".{to.name}-{uuid.uuid4().hex}"
    aside.mkdir()
    try:
        _fill(source, aside)
        aside.rename(to)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _fill(source: _Source, aside: Path) -> None:
    decisive = files_of(source.folder)
    content = read(decisive, aside)
    done = {path.name for path, _, _ in decisive}
    for name, _, _ in source.files:
        if name not in done:
            shutil.copyfile(source.folder / name, aside / name)
    if _source(source.folder) != source:
        raise Unstaged("it changed while it was copied")
    if content_of(aside) != content:
        raise Unstaged("the copy does not read as it was written")
    atomic.write_json(aside / RECORD, {"schema": 1, "from": str(source.folder), "content": content})

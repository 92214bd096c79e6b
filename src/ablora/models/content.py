"""What decides a base's numbers, by content: its identity wherever the files lie."""

import hashlib
from contextlib import nullcontext
from functools import cache
from pathlib import Path

NAMES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")

Files = tuple[tuple[Path, int, int], ...]
"""With the time of their last change and their size."""


def content_of(folder: Path) -> str:
    """sha256 over what decides the model's numbers: configuration, tokenizer and weights, by name and content."""
    return _content(files_of(folder))


def files_of(folder: Path) -> Files:
    """The files of that content, in its order."""
    found = [folder / name for name in NAMES if (folder / name).exists()] + sorted(folder.glob("*.safetensors"))
    return tuple((file, file.stat().st_mtime_ns, file.stat().st_size) for file in found)


@cache
def _content(files: Files) -> str:
    return read(files)


def read(files: Files, into: Path | None = None) -> str:
    """The content, with a copy of each file made on the way: a base on a slow disk is read once."""
    digest = hashlib.sha256()
    for path, _, size in files:
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file, (into / path.name).open("wb") if into else nullcontext() as copy:
            while block := file.read(1 << 20):
                digest.update(block)
                if copy is not None:
                    copy.write(block)
    return digest.hexdigest()

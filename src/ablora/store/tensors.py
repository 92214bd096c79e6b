"""safetensors files that check themselves: the digest of the tensors stands in the header."""

import hashlib
import json
import mmap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

DIGEST = "sha256"
DTYPES = {
    "I32": "torch.int32",
    "I64": "torch.int64",
    "F32": "torch.float32",
    "F64": "torch.float64",
    "U8": "torch.uint8",
}
"""By safetensors' names, those that numpy has too."""


class Damaged(ValueError):  # noqa: N818 -- a state of a file
    """The file is no safetensors file, was cut, or does not hold what was written."""


def write(path: Path, tensors: Mapping[str, Tensor], note: str = "") -> None:
    """Tensors, their digest, and a note of the writer's."""
    plain = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    save_file(plain, path, metadata={DIGEST: _digest(plain, note), "note": note})


def read(path: Path) -> tuple[dict[str, Tensor], str]:
    """(tensors, note) as written; raises Damaged.

    The file is read in one go: safetensors' lazy reader opens a path twice, and was seen to take the header of one
    file and the data of the next when another process renamed a new one into its place in between.
    """
    try:
        data = path.read_bytes()
        tensors = load(data)
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size]).get("__metadata__", {})
    except (SafetensorError, OSError, ValueError) as error:
        raise Damaged(str(error)) from error
    note = header.get("note", "")
    if _digest(tensors, note) != header.get(DIGEST):
        raise Damaged("its sha256 is not the one written into it")
    return tensors, note


def mapped(path: Path) -> tuple[dict[str, np.ndarray], str]:
    """(arrays, note) as written, the arrays views of the file: read-only, shared between processes, not copied.

    Raises Damaged. The file is opened once, and goes on to be there when another is renamed into its place.
    """
    try:
        with path.open("rb") as file:
            held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        start = 8 + int.from_bytes(held[:8], "little")
        header = json.loads(held[8:start])
        about = header.pop("__metadata__", {})
        arrays = {name: _view(held, start, **entry) for name, entry in header.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(str(error)) from error
    note = about.get("note", "")
    parts = ((name, DTYPES[header[name]["dtype"]], array.shape, array) for name, array in sorted(arrays.items()))
    if _sha256(parts, note) != about.get(DIGEST):
        raise Damaged("its sha256 is not the one written into it")
    return arrays, note


def _view(held: mmap.mmap, start: int, dtype: str, shape: list[int], data_offsets: list[int]) -> np.ndarray:
    begin, end = data_offsets
    kind = np.dtype(DTYPES[dtype].removeprefix("torch."))
    return np.frombuffer(held, kind, (end - begin) // kind.itemsize, start + begin).reshape(shape)


def _digest(tensors: Mapping[str, Tensor], note: str) -> str:
    plain = ((name, tensors[name].contiguous()) for name in sorted(tensors))
    return _sha256(((n, str(t.dtype), t.shape, t.reshape(-1).view(torch.uint8).numpy()) for n, t in plain), note)


def _sha256(parts: Iterable[tuple[str, str, Sequence[int], np.ndarray]], note: str) -> str:
    """Of name, dtype (torch's word), shape and content of each, in the order of their names, behind the note."""
    digest = hashlib.sha256(note.encode())
    for name, dtype, shape, content in parts:
        digest.update(f"{name} {dtype} {tuple(shape)}".encode())
        digest.update(content.data)
    return digest.hexdigest()

"""safetensors files that check themselves: the digest of the tensors stands in the header."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

DIGEST = "sha256"


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


def _digest(tensors: Mapping[str, Tensor], note: str) -> str:
    digest = hashlib.sha256(note.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

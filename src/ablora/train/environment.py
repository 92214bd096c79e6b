"""Where a run ran: what is needed to explain a difference, and never a secret."""

import hashlib
import os
import platform
import resource
import sys
import time
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ablora.store import atomic
from ablora.store.run_folder import SCHEMA, RunFolder

PACKAGES = ("ablora", "torch", "transformers", "tokenizers", "safetensors", "numpy", "hydra-core", "wandb")


def describe() -> dict[str, Any]:
    """Versions, device, threads and the hash of the code that is imported."""
    return {
        "time_s": time.time(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "code_sha256": code_hash(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu ({platform.machine()})",
        "threads": torch.get_num_threads(),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
    }


def append_environment(folder: RunFolder) -> None:
    """Add this start to the run's env.json: a resumed run lists every place it was trained in."""
    starts = atomic.read_json(folder.env)["starts"] if folder.env.exists() else []
    atomic.write_json(folder.env, {"schema": SCHEMA, "starts": [*starts, describe()]})


@cache
def code_hash() -> str:
    """sha256 over the package's Python files, by name and content: what was really imported, committed or not."""
    root = Path(sys.modules["ablora"].__file__ or "").parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def peak_rss_gib() -> float:
    """The most memory that this process has held (all its runs together)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None

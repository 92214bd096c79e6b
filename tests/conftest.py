"""What all tests share: real data by path, small models, one thread for torch."""

import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)  # bit-equality needs one thread, and xdist's workers share two cores

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data: ABLORA_SHARED, or ../shared beside the repository."""
    folder = Path(os.environ.get("ABLORA_SHARED", REPOSITORY.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip("no shared data: set ABLORA_SHARED to the folder that holds data/")
    return folder

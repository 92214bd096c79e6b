import sys
from pathlib import Path

import pytest

from ablora.store.roots import Roots

sys.path.insert(0, str(Path(__file__).parents[1] / "analysis"))


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    return Roots(tmp_path / "runs", tmp_path / "studies", tmp_path / "cache")

"""Searches in a temporary folder, with a training that costs nothing."""

import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from ablora.cli import main
from ablora.store.roots import Roots
from ablora.study.manifest import StudyFolder
from control_plane import fake, roots
from searches import QUICK, SPACE
from test_bad_input import conf_with_sweep


@pytest.fixture
def study(roots: Roots) -> StudyFolder:
    return StudyFolder(roots.studies / "s")


@pytest.fixture
def search(roots: Roots) -> Callable[..., int]:
    """`ablora run -m tuner=optuna ...` over a learning rate."""
    return lambda *more: main(["run", "-m", "tuner=optuna", *QUICK, *SPACE, *more])


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes +sweeps=own a sweep file with this `sweep` block."""

    def write(block: str) -> None:
        text = "# @package _global_\nsweep:\n" + textwrap.indent(block, "  ")
        monkeypatch.setattr("ablora.config.loader.conf_dir", lambda: conf_with_sweep(tmp_path, text))

    return write


__all__ = ["fake", "roots"]

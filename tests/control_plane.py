"""Fixtures of what happens around training: folders of a test's own, and a training that costs nothing."""

from pathlib import Path

import pytest

import fake_execute
from ablora.store.roots import Roots


@pytest.fixture
def roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Roots:
    """The folders of commands in this test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ABLORA_RUNS", raising=False)
    monkeypatch.setenv("ABLORA_CACHE", str(tmp_path / "cache"))
    return Roots.from_environment()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training in this process is the fake one."""
    monkeypatch.setattr("ablora.dispatch.job.execute", fake_execute.execute)

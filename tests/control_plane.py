"""Fixtures of what happens around training: folders of a test's own, and a training that costs nothing."""

import json
from pathlib import Path

import pytest

import fake_execute
from ablora.store import claims
from ablora.store.roots import Roots
from ablora.store.run_folder import RunFolder


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


def claimed(folder: RunFolder, task: str, restart: int = 0, cluster: str = "lab") -> None:
    """Claim a run as a process on a node would have."""
    owner = {
        "host": "node9",
        "boot": "b",
        "pid": 1,
        "started": "1",
        "slurm": task,
        "restart": restart,
        "cluster": cluster,
    }
    (folder.path / f"claim.{claims.latest(folder) + 1}.json").write_text(json.dumps(owner))

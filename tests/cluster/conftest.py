"""A real SLURM, as `tests/cluster/up.sh` starts it; without one these tests skip (in CI a skip is a failure)."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
OURS = Path(os.environ.get("ABLORA_SLURM", "/run/ablora-slurm")) / "slurm.conf"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="session", autouse=True)
def cluster() -> None:
    """The test cluster alone: a site's own SLURM is nobody's place for faults."""
    if not OURS.exists():
        pytest.skip(f"no SLURM for tests: {HERE / 'up.sh'} (as root) starts one on this machine")
    os.environ["SLURM_CONF"] = str(OURS)
    asked = subprocess.run(["sinfo", "--noheader"], capture_output=True, text=True, timeout=60)
    if asked.returncode:
        pytest.skip(f"the SLURM for tests does not answer: {asked.stderr.strip()}")


def resume_drained() -> None:
    """SLURM takes a node out of use where its own launch of a job failed, and every later test that needs both nodes
    would wait for it in vain. Seen where the cgroup of an earlier job of the same number was left (`up.sh`)."""
    said = subprocess.run(["sinfo", "-hN", "-o", "%N %T"], capture_output=True, text=True, timeout=60).stdout
    for node in {line.split()[0] for line in said.splitlines() if "drain" in line}:
        subprocess.run(["scontrol", "update", f"nodename={node}", "state=resume"], timeout=60, check=False)


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["Lab"]:
    """A study whose training costs nothing; its jobs end with the test."""
    resume_drained()
    import fake_task
    from ablora.store.roots import Roots
    from slurm_lab import TESTS, Lab

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ABLORA_RUNS", raising=False)
    monkeypatch.setenv("ABLORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    monkeypatch.setattr("ablora.dispatch.slurm.work_in_task", fake_task.work_in_task)
    yield (made := Lab(Roots.from_environment()))
    made.end()

"""What all tests share: real data by path, small models, one thread for torch."""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("ours", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("ours")
sys.path.insert(0, str(Path(__file__).parent))
# No test works in the user's own folders.
os.environ.pop("ABLORA_RUNS", None)
CACHE = os.environ["ABLORA_CACHE"] = tempfile.mkdtemp(prefix="ablora-test-cache-")
torch.set_num_threads(1)  # bit-equality needs one thread, and xdist's workers share two cores

REPOSITORY = Path(__file__).parents[1]
LONG = frozenset((REPOSITORY / "tests" / "long.txt").read_text().split("\n"))
"""Ids of tests, and whole files, that `make test` leaves out, as tests/long.py found them by their durations."""


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data: ABLORA_SHARED, or ../shared beside the repository."""
    folder = Path(os.environ.get("ABLORA_SHARED", REPOSITORY.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip("no shared data: set ABLORA_SHARED to the folder that holds data/")
    return folder


@pytest.hookimpl(tryfirst=True)  # before pytest picks by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.nodeid in LONG or item.nodeid.partition("::")[0] in LONG:
            item.add_marker("long")


def pytest_unconfigure() -> None:
    shutil.rmtree(CACHE, ignore_errors=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which skips continuous integration does not accept."""
    for line in _refused(terminalreporter):
        terminalreporter.write_line(f"in CI a skip is a failure: {line}", red=True)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and _refused(reporter) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _refused(reporter: pytest.TerminalReporter) -> list[str]:
    if not os.environ.get("CI"):
        return []
    reasons = {report.nodeid: str(report.longrepr[-1]) for report in reporter.stats.get("skipped", [])}
    return [f"{name}: {reason}" for name, reason in reasons.items() if "no GPU" not in reason]

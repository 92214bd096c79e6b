"""Trackers without the machine's own login, and W&B's service played by a small server."""

import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_wandb import FakeWandb
from tracked_runs import KEY

from ablora.store.roots import Roots
from ablora.track import TrackerConfig, make
from ablora.track.channel import Channel


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No login, no setting and no proxy of the machine reaches a test, and the working directory is empty."""
    for name in list(os.environ):
        if name.startswith("WANDB_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    home, cwd = tmp_path / "home", tmp_path / "cwd"
    home.mkdir()
    cwd.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    monkeypatch.setenv("ABLORA_TRUSTED_MODULES", "track_values")
    monkeypatch.chdir(cwd)
    return cwd


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    return Roots(tmp_path / "home" / "runs", tmp_path / "home" / "studies", tmp_path / "home" / "cache")


_SHARED: list[Channel] = []
"""One worker for all tests that do it no harm: starting it takes most of such a test's time."""


@pytest.fixture
def tracker(roots: Roots) -> Iterator[Callable[..., Any]]:
    """Makes observers, and ends after the test the workers that are a test's own."""
    own = []

    def new(study: str | None = None, shared: bool = False, **fields: Any) -> Any:
        observer = make(TrackerConfig(**{"kind": "wandb", **fields}), study, roots)
        if shared:
            if not _SHARED:
                _SHARED.append(Channel(Path(tempfile.mkdtemp())))
            observer._channel = _SHARED[0]
        own.append(observer)
        return observer

    yield new
    # An observer that lost the shared worker (wandb's own time limits, on a busy machine) has another by now: that one
    # goes with its test, and the next test does not get the dead one.
    for observer in own:
        if getattr(observer, "_channel", None) not in _SHARED:
            observer.close()
    if _SHARED and not _SHARED[0].alive():
        _SHARED.pop().kill()


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """The warnings so far."""
    return lambda: [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING and "ablora" in r.name]


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeWandb]:
    """A service that answers, and a login for it."""
    with FakeWandb() as server:
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        yield server
        server.shutdown()

"""What can go wrong with W&B: the run goes on, one warning says so, and the run folder keeps the record."""

import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tracked_runs import KEY, Trainer, spec_of, steps_of, whole_run

from ablora.spec import BadInput
from ablora.track import TrackerConfig, login, make, observer
from ablora.track.channel import Broken, Channel


def note_of(run: Trainer) -> dict:
    return json.loads((run.folder.path / "track.json").read_text())


@pytest.fixture
def nobody_answers() -> Iterator[str]:
    """A server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def service_of(worker: int, wait_s: float = 10.0) -> int:
    """The pid of wandb-core, a child of the worker that this test started."""
    until = time.monotonic() + wait_s
    while time.monotonic() < until:
        with contextlib.suppress(FileNotFoundError):
            for pid in Path(f"/proc/{worker}/task/{worker}/children").read_text().split():
                if Path(f"/proc/{pid}/comm").read_text().strip().startswith("wandb-core"):
                    return int(pid)
        time.sleep(0.05)
    raise AssertionError("no wandb-core")


def logged(run: Trainer) -> bool:
    return bool(list(run.folder.path.glob("wandb/offline-run-*/*.wandb")))


@pytest.mark.parametrize("refuse", [True, False])
def test_a_login_but_no_network_falls_back_to_offline(roots, tracker, said, monkeypatch, nobody_answers, refuse):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9" if refuse else nobody_answers)
    watcher = tracker()
    watcher._init_s = 2.0  # in place of 8, for the test's sake
    began = time.monotonic()
    run = Trainer(roots, watcher, spec_of()).start()
    assert time.monotonic() - began < 2.0
    run.step(1, 20).end()
    assert time.monotonic() - began < 15.0
    again = time.monotonic()
    second = whole_run(roots, watcher, seed=1)
    assert time.monotonic() - again < 5.0  # the next run of the process does not wait for the network again
    assert steps_of(run.log()) == steps_of(second.log()) == list(range(1, 21))
    assert note_of(run)["mode"] == "offline"
    assert "tracked offline from here on: CommError" in note_of(run)["trouble"][0]
    assert len(said()) == 1
    for path in run.folder.path.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes()


def test_no_place_for_a_view(roots, tracker, said):
    watcher = tracker(shared=True)
    run = Trainer(roots, watcher, spec_of())
    (run.folder.path / "wandb").write_text("a file where the folder should be")  # permissions do not stop root
    run.start().step(1, 3).end()
    assert note_of(run)["state"] == "silent"
    assert "not tracked" in note_of(run)["trouble"][0]
    assert len(said()) == 1
    other = whole_run(roots, watcher, seed=1)
    assert steps_of(other.log()) == list(range(1, 21))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_the_service_dies_or_hangs_in_the_middle(roots, tracker, said, monkeypatch, how):
    watcher = tracker()
    watcher._patience_s = 10.0
    run = Trainer(roots, watcher, spec_of()).start().step(1, 10)
    while not logged(run):
        time.sleep(0.05)
    service = service_of(watcher._channel.pid)
    os.kill(service, how)
    began = time.monotonic()
    run.step(11, 20).end()
    assert time.monotonic() - began < 60.0
    assert steps_of(run.log()) == list(range(1, 21))
    assert run.log().exit_codes == [0]
    assert len(said()) == 1
    assert not Path(f"/proc/{service}/cmdline").exists() or Path(f"/proc/{service}/cmdline").read_bytes() == b""


def test_a_worker_lost_between_two_runs_is_replaced_once(roots, tracker, said):
    watcher = tracker()
    whole_run(roots, watcher)
    os.kill(watcher._channel.pid, signal.SIGKILL)
    while watcher._channel.alive():
        time.sleep(0.01)
    run = whole_run(roots, watcher, seed=1)
    assert steps_of(run.log()) == list(range(1, 21))
    (trouble,) = note_of(run)["trouble"]  # told of a run twice, wandb refuses it, which costs a second restart
    assert "exit code -9" in trouble
    assert len(said()) == 1


def test_nothing_is_sent_after_hanging_up(tmp_path):
    """The number of the closed end is free, and the next file of the process has it."""
    gone = Channel(tmp_path)
    gone.kill()
    file = os.open(tmp_path / "another", os.O_CREAT | os.O_WRONLY)
    os.dup2(file, gone._to)
    try:
        with pytest.raises(Broken, match="exit code -9"):
            gone.send({"op": "finish"})
        assert (tmp_path / "another").read_bytes() == b""
    finally:
        for number in {file, gone._to}:
            os.close(number)


def test_a_tracker_that_never_answers_is_given_up(roots, tracker, said, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "")
    watcher = tracker()
    watcher._patience_s, watcher._restarts_left = 0.5, 0
    run = Trainer(roots, watcher, spec_of()).start()
    os.kill(watcher._channel.pid, signal.SIGSTOP)
    began = time.monotonic()
    run.step(1, 20).end()
    assert time.monotonic() - began < 3.0
    assert note_of(run)["state"] == "silent"
    assert "did not answer" in note_of(run)["trouble"][0]
    assert len(said()) == 1
    whole_run(roots, watcher, seed=1)  # silent, and as quick as no tracker
    assert len(said()) == 1


def test_without_wandb_one_warning_and_no_tracker(roots, said, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    watcher = make(TrackerConfig("wandb"), None, roots)
    run = whole_run(roots, watcher)
    assert isinstance(watcher, observer.Off)
    assert not (run.folder.path / "wandb").exists()
    assert len(said()) == 1
    assert "ablora[wandb]" in said()[0]


def test_a_wandb_that_cannot_be_imported(roots, tracker, said, monkeypatch, tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "wandb.py").write_text("raise ImportError('half installed')\n")
    monkeypatch.syspath_prepend(str(tmp_path / "broken"))
    run = whole_run(roots, tracker())
    assert note_of(run)["state"] == "silent"
    assert any("half installed" in text for text in note_of(run)["trouble"])
    assert len(said()) == 1


def test_off_and_disabled_do_nothing(roots, monkeypatch):
    whole_run(roots, make(TrackerConfig("off"), None, roots))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    run = whole_run(roots, make(TrackerConfig("wandb"), None, roots), seed=1)
    assert not list(roots.runs.glob("*/wandb"))
    assert run.folder.result.exists()


@pytest.mark.parametrize(
    ("mode", "environment", "netrc", "chosen"),
    [
        ("auto", {}, "", "offline"),
        ("auto", {"WANDB_API_KEY": KEY}, "", "online"),
        ("auto", {}, "machine api.wandb.ai login user password k", "online"),
        ("auto", {"WANDB_BASE_URL": "https://lab.example"}, "machine api.wandb.ai login user password k", "offline"),
        ("auto", {"WANDB_BASE_URL": "https://lab.example"}, "machine lab.example login user password k", "online"),
        ("auto", {"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}, "", "offline"),
        ("auto", {"WANDB_API_KEY": KEY, "WANDB_MODE": "disabled"}, "", "disabled"),
        ("offline", {"WANDB_API_KEY": KEY}, "", "offline"),
        ("online", {"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}, "", "online"),
    ],
)
def test_the_mode_is_chosen_without_asking(monkeypatch, mode, environment, netrc, chosen):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    Path(os.environ["NETRC"]).write_text(netrc + "\n")
    assert login.choose(mode) == (chosen, None)


@pytest.mark.parametrize("asked", ["online", "auto"])
def test_online_without_a_login_is_offline_and_says_why(monkeypatch, asked):
    monkeypatch.setenv("WANDB_MODE", "online")
    mode, complaint = login.choose(asked)
    assert mode == "offline"
    assert "no login" in complaint


@pytest.mark.parametrize("fields", [{"kind": "tensorboard"}, {"kind": "wandb", "mode": "cloud"}])
def test_a_config_that_means_nothing_is_refused(fields):
    with pytest.raises(BadInput):
        TrackerConfig(**fields)

"""Searches in every storage, with workers that are killed: the total is exact, every trial is told once."""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from ablora.cli import main
from ablora.store import atomic, lines
from ablora.tune.storage import Slot
from searches import QUICK, SPACE, results, starts, trials_of

TESTS = Path(__file__).parents[1]
LOCAL = [*(one for one in QUICK if not one.startswith("cluster=")), "cluster=local", "cluster.workers=3", *SPACE]


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server in a temporary folder; its URL."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not found:
        pytest.skip("no PostgreSQL server: tests/postgres/up.sh installs it")
    folder = Path("/tmp") / f"ablora-postgres-{os.getpid()}"  # short: a socket's path has 107 bytes
    folder.mkdir()
    who = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    if who:
        shutil.chown(folder, "postgres")
    data = str(folder / "data")
    quiet = {"check": True, "stdout": subprocess.DEVNULL, "cwd": "/"}
    subprocess.run([*who, found[-1] / "initdb", "-D", data, "-A", "trust", "-U", "ablora", "--no-sync"], **quiet)
    options = f"-k {folder} -c listen_addresses='' -c fsync=off -c shared_buffers=16MB"
    control = [*who, str(found[-1] / "pg_ctl"), "-D", data, "-w", "-l", str(folder / "log")]
    subprocess.run([*control, "-o", options, "start"], **quiet)
    try:
        yield f"postgresql+psycopg2://ablora@/postgres?host={folder}"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], **quiet)
        shutil.rmtree(folder)


@pytest.fixture(params=["journal", "sqlite", "postgresql"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A value of `tuner.storage`."""
    if request.param == "journal":
        return "null"
    if request.param == "sqlite":
        return f"'sqlite:///{tmp_path}/trials.db'"
    monkeypatch.setenv("ABLORA_TEST_STORAGE", request.getfixturevalue("postgres"))
    return "env:ABLORA_TEST_STORAGE"


def controller(*arguments: str) -> subprocess.Popen[bytes]:
    """`ablora run` in a process of its own, whose workers train with the fake."""
    script = (
        "import sys, ablora.dispatch.local, fake_worker; "
        "ablora.dispatch.local.work_in_worker = fake_worker.work_in_worker; "
        "from ablora.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, "run", "-m", "tuner=optuna", *LOCAL, *arguments]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(TESTS)}, start_new_session=True, **quiet)


def workers(roots) -> list[int]:
    """The processes that hold a trial now."""
    out = []
    for path in roots.studies.glob("s/search/trials/*/claim.*.json"):
        released = path.with_suffix("").with_suffix(f"{path.with_suffix('').suffix}.released")
        if not released.exists() and path.stat().st_size:
            out.append(atomic.read_json(path)["pid"])
    return [pid for pid in set(out) if Path(f"/proc/{pid}").exists()]


def test_killed_workers_and_controllers_lose_no_trial_and_make_none_too_many(roots, study, storage):
    arguments = ["tuner.trials=15", "method=lora,pissa", f"tuner.storage={storage}", "pack=2", "tuner.pruner=median"]
    chance = random.Random(7)
    kills = 0
    for _ in range(40):
        process = controller(*arguments)
        until = time.monotonic() + chance.uniform(3, 8)
        while kills < 6 and process.poll() is None:
            time.sleep(0.05)
            if time.monotonic() > until and (found := workers(roots)):
                os.kill(chance.choice([*found, process.pid]), signal.SIGKILL)
                kills, until = kills + 1, time.monotonic() + chance.uniform(1, 4)
        if process.wait() == 0:
            break
    assert process.returncode == 0
    told = results(study)
    assert len(told) == 30
    for arm in (0, 1):
        trials = trials_of(study).study(Slot(arm, 0)).get_trials()
        assert [trial.number for trial in trials] == list(range(15))
        assert {trial.state.name for trial in trials} <= {"COMPLETE", "PRUNED"}
        for trial in trials:
            one = told[trial.user_attrs["slot"]]
            assert one["run"] == trial.user_attrs["run"]
            assert one["values"] == (trial.values if trial.state.name == "COMPLETE" else [])
            assert (one["state"] == "complete") == (trial.state.name == "COMPLETE")
    assert len(list(lines.read(study.manifest))) == 30
    assert sum(starts(roots)) <= len(starts(roots)) + 2 * kills, "a killed worker had two runs at most"
    assert kills > 0


def test_a_finished_storage_is_opened_by_the_dashboard(roots, study, fake):
    pytest.importorskip("optuna_dashboard")
    assert main(["run", "-m", "tuner=optuna", *QUICK, *SPACE, "tuner.trials=2", "method=lora,goat"]) == 0
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).with_name("optuna-dashboard")), str(study.journal), "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        said = b""
        for _ in range(300):
            time.sleep(0.2)
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/studies", timeout=30) as answer:
                    said = answer.read()
                break
            except OSError:
                assert server.poll() is None
        assert b"s/method=lora" in said
        assert b"s/method=goat" in said
    finally:
        server.terminate()
        server.wait()


def test_a_server_that_is_not_there_is_said_before_anything_is_written(roots, capsys, monkeypatch):
    monkeypatch.setenv("ABLORA_TEST_STORAGE", "postgresql+psycopg2://me:hidden@127.0.0.1:1/x")
    arguments = ["tuner.storage=env:ABLORA_TEST_STORAGE", *SPACE]
    assert main(["run", "-m", "tuner=optuna", *QUICK, *arguments]) == 2
    said = capsys.readouterr().err
    assert "a database that answers" in said
    assert "hidden" not in said
    assert not list(roots.runs.iterdir())

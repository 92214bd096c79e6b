"""What the doctor says of this machine, and of machines with something broken."""

import errno
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from importlib import metadata
from pathlib import Path

import pytest

from ablora import doctor
from ablora.doctor import Line, broken_promises, examine, extras, guarded, places, wandb

KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ABLORA_RUNS", str(tmp_path / "work/runs"))
    monkeypatch.setenv("ABLORA_CACHE", str(tmp_path / "cache"))


def found(check) -> dict[str, Line]:
    return {line.name: line for line in guarded(check)}


def test_this_machine_is_well_without_network_and_nothing_is_left_behind():
    """The whole examination, with its real first step; every connection but to this machine's sockets is refused."""
    code = (
        "import socket, sys; connect = socket.socket.connect\n"
        "def refuse(self, address):\n"
        "    if self.family != socket.AF_UNIX: print('NETWORK', address); raise OSError('no network')\n"
        "    return connect(self, address)\n"
        "socket.socket.connect = refuse; socket.getaddrinfo = lambda *a, **k: sys.exit('NETWORK')\n"
        "from ablora.doctor import examine; sys.exit(examine())"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stdout + process.stderr
    said = process.stdout
    for name in ("python", "torch", "gpu", "cores", "memory", "runs", "studies", "cache", "analysis", "slurm"):
        assert f" {name} " in said
    assert "ok       first step" in said
    assert said.splitlines()[-1].startswith("ablora run works here")
    assert "NETWORK" not in said + process.stderr
    assert not list(Path.cwd().iterdir())


def test_a_problem_is_exit_code_2_and_hides_nothing(monkeypatch, capsys):
    def broken():
        yield Line("ok", "before", "")
        raise RuntimeError("no such thing\nat all")

    for name in ("torch", "machine", "places", "extras", "wandb", "slurm"):
        monkeypatch.setattr(doctor, name, lambda: iter(()))
    monkeypatch.setattr(doctor, "first_step", broken)
    assert examine() == 2
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said] == ["ok", "ok", "problem", "next:", "1"]
    assert "RuntimeError: no such thing at all" in said[2]


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ABLORA_RUNS", str(tmp_path / "file/runs"))
    lines = found(places)
    assert (lines["runs"].status, lines["studies"].status, lines["cache"].status) == ("problem", "problem", "ok")
    assert lines["runs"].next.startswith("export ABLORA_RUNS=")


def test_folders_that_are_there_are_kept(tmp_path):
    (tmp_path / "work/runs/abc").mkdir(parents=True)
    assert {line.status for line in found(places).values()} == {"ok"}
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["abc", "runs", "work"]


def test_a_full_disk_and_a_wrong_clock(monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**40, 2**40, 2**20))
    line = found(places)["runs"]
    assert (line.status, "0.00 GiB free" in line.found) == ("problem", True)
    assert "ablora clean STUDY" in line.next
    monkeypatch.undo()
    now = doctor.time.time
    monkeypatch.setattr(doctor.time, "time", lambda: now() + 3600)
    assert "its clock is -3600 s" in found(places)["runs"].found


def test_a_file_system_without_links_renames_or_locks(tmp_path, monkeypatch):
    assert broken_promises(made(tmp_path / "whole")) == []

    def refuses(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    def replaces(a: Path, b: Path) -> None:
        b.write_bytes(a.read_bytes())

    monkeypatch.setattr(os, "link", refuses)
    assert broken_promises(made(tmp_path / "no links")) == [
        "no hard links (Operation not permitted), which claims are made of"
    ]
    monkeypatch.setattr(os, "link", replaces)
    assert broken_promises(made(tmp_path / "weak links")) == ["two processes could claim one run (link replaces)"]
    monkeypatch.undo()
    monkeypatch.setattr(doctor, "HOLDS", "pass")  # the second process gets the lock too
    assert broken_promises(made(tmp_path / "weak locks")) == ["locks do not exclude"]
    monkeypatch.setattr(Path, "rename", lambda self, target: None)
    assert "rename does not replace" in broken_promises(made(tmp_path / "no rename"))


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_a_login_is_seen_and_never_shown(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (line,) = guarded(wandb)
    assert (line.status, "tracked offline" in line.found) == ("missing", True)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    (line,) = guarded(wandb)
    assert (line.status, "tracked online" in line.found) == ("ok", True)
    assert not any(KEY[i : i + 6] in "".join(line) for i in range(len(KEY) - 6))


def test_extras_that_are_missing_say_how_to_get_them(monkeypatch):
    monkeypatch.setattr(
        metadata, "requires",
        lambda _: ["torch>=2", "rich>=1; extra == 'look'", 'no-such-thing>=1 ; extra == "more"', "x; extra == 'dev'"],
    )  # fmt: skip
    lines = found(extras)
    assert lines.keys() == {"look", "more"}
    assert lines["look"].status == "ok"
    assert (lines["more"].status, lines["more"].found) == ("missing", "no-such-thing")
    assert "pip install" in lines["more"].next
    assert "[more]" in lines["more"].next


def test_a_python_that_is_too_old(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 2))
    (line,) = guarded(doctor.python)
    assert line.status == "problem"

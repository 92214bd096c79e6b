"""The run folder's files: whole or absent, one owner, a torn line forgotten, anything else damaged named."""

import json
import multiprocessing
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ablora.spec import BadInput
from ablora.store import atomic, claims, lines, tensors
from ablora.store.roots import Roots
from ablora.store.run_folder import RunFolder


def test_a_failing_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.json"
    atomic.write_json(path, {"a": 1})

    def fail(aside):
        aside.write_text("half")
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        atomic.replace(path, fail)
    assert atomic.read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_not_a_number_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Out of range"):
        atomic.write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert not (tmp_path / "x.json").exists()


@pytest.mark.parametrize("text", ["{", "", "\x00\xff"])
def test_a_damaged_json_is_named(tmp_path, text):
    path = tmp_path / "result.json"
    path.write_bytes(text.encode("latin1"))
    with pytest.raises(atomic.Corrupted, match=r"result\.json"):
        atomic.read_json(path)


def _rewrite(path, rounds):
    for i in range(rounds):
        value = {"x": torch.full((200, 200), float(i % 7)), "step": torch.tensor(float(i))}
        atomic.replace(path, lambda aside, v=value, n=str(i): tensors.write(aside, v, n), durable=False)


def test_tensors_are_whole_while_another_process_replaces_them(tmp_path):
    path = tmp_path / "x.safetensors"
    _rewrite(path, 1)
    writer = multiprocessing.get_context("fork").Process(target=_rewrite, args=(path, 150))
    writer.start()
    while writer.is_alive():
        found, note = tensors.read(path)
        assert (found["x"] == int(note) % 7).all()
        assert found["step"] == int(note)
    writer.join()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_tensors_round_trip(tmp_path, dtype):
    value = {"a": torch.arange(6).reshape(2, 3).to(dtype), "b": torch.tensor(1).to(dtype)}
    tensors.write(tmp_path / "x", value, "note")
    found, note = tensors.read(tmp_path / "x")
    assert note == "note"
    assert all(torch.equal(found[k], value[k]) and found[k].dtype == dtype for k in value)
    data = (tmp_path / "x").read_bytes()
    (tmp_path / "x").write_bytes(data.replace(b"note", b"nope"))
    with pytest.raises(tensors.Damaged):
        tensors.read(tmp_path / "x")


def test_a_result_of_another_run_is_refused(tmp_path):
    folder = RunFolder(tmp_path / "abc")
    atomic.write_json(folder.result, {"id": "other", "metrics": {}})
    with pytest.raises(atomic.Corrupted, match="'other' is not legal: a result with id abc"):
        folder.read_result()


RECORDS = st.lists(st.fixed_dictionaries({"step": st.integers(0, 99), "text": st.text()}))


@given(RECORDS, st.binary(max_size=20).filter(lambda b: b"\n" not in b))
def test_lines_round_trip_and_forget_a_torn_end(tmp_path_factory, records, torn):
    path = tmp_path_factory.mktemp("lines") / "m.jsonl"
    lines.append(path, records)
    with path.open("ab") as file:
        file.write(torn.decode("utf-8", "ignore").encode())
    assert list(lines.read(path)) == records
    lines.keep(path, lambda r: r["step"] <= 50)
    assert list(lines.read(path)) == [r for r in records if r["step"] <= 50]
    lines.append(path, [{"step": 1}])
    assert list(lines.read(path))[-1] == {"step": 1}


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n{"step": \n{"step": 3}\n')
    with pytest.raises(atomic.Corrupted, match=r"m\.jsonl:2"):
        list(lines.read(path))


def _race(path, barrier, wins):
    barrier.wait()
    if claims.take(RunFolder(path)) is not None:
        wins.put(os.getpid())
        barrier.wait()  # stay alive until all have tried
    else:
        barrier.wait()


def test_of_many_only_one_claims(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, wins = context.Barrier(8), context.Queue()
    processes = [context.Process(target=_race, args=(tmp_path, barrier, wins)) for _ in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert wins.get(timeout=5)
    assert wins.empty()
    assert claims.latest(RunFolder(tmp_path)) == 0
    assert not claims.is_held(RunFolder(tmp_path)), "its owner is dead"


def test_who_claims_while_another_judges_is_not_taken_over(tmp_path):
    """The race of `test_of_many_only_one_claims`, made certain: the other claims between the judgement and the link."""
    folder = RunFolder(tmp_path)
    assert claims.take(folder) is not None

    def dies_and_is_followed(_owner):
        assert claims.take(folder, alive=lambda _: False) is not None
        return False

    assert claims.take(folder, alive=dies_and_is_followed) is None
    assert claims.latest(folder) == 1


def test_a_dead_owner_is_taken_over_and_fenced(tmp_path):
    folder = RunFolder(tmp_path)
    code = (
        "from pathlib import Path; from ablora.store import claims; from ablora.store.run_folder import RunFolder;"
        f"claims.take(RunFolder(Path({str(tmp_path)!r})))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert not claims.is_held(folder)
    old = claims.Claim(folder, 0)
    old.fence()
    mine = claims.take(folder)
    assert mine is not None
    assert mine.generation == 1
    assert claims.take(folder) is None
    with pytest.raises(claims.Fenced):
        old.fence()
    claims.release(mine)
    assert not claims.is_held(folder)


def test_a_zombie_owns_nothing(tmp_path):
    code = "import sys; from pathlib import Path; from ablora.store import claims; from ablora.store.run_folder import RunFolder; claims.take(RunFolder(Path(sys.argv[1])))"  # noqa: E501
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it is dead, and nobody has waited for it
    folder = RunFolder(tmp_path)
    assert claims.latest(folder) == 0
    assert not claims.is_held(folder)
    assert not claims.is_held_beside(folder)
    process.wait()


def test_a_reused_pid_is_not_the_owner(tmp_path):
    folder = RunFolder(tmp_path)
    assert claims.take(folder) is not None
    path = tmp_path / "claim.0.json"
    owner = json.loads(path.read_text())
    path.write_text(json.dumps({**owner, "started": "1"}))
    assert not claims.is_held(folder)
    path.write_text(json.dumps({**owner, "boot": "another boot"}))
    assert not claims.is_held(folder)
    path.write_text(json.dumps({**owner, "host": "elsewhere"}))
    assert claims.is_held(folder), "another host cannot be asked"


def test_roots(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ABLORA_RUNS", raising=False)
    monkeypatch.setenv("ABLORA_CACHE", str(tmp_path / "cache"))
    roots = Roots.from_environment()
    assert roots.runs == tmp_path / "runs"
    assert roots.studies == tmp_path / "studies"
    roots.require_writable()
    (tmp_path / "file").touch()
    monkeypatch.setenv("ABLORA_RUNS", str(tmp_path / "file" / "runs"))
    with pytest.raises(BadInput, match="ABLORA_RUNS"):
        Roots.from_environment().require_writable()

"""SIGKILL at random moments: every run done once, and the table the undisturbed one, bit for bit."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ablora.store import lines
from ablora.store.run_folder import RunFolder

# Four rates (two blocks of three that share two), then two fresh seeds: both stages are hit.
STUDY = ["+sweeps=demo", "study=demo", "tracker=off", "method=lora", "dataset=arithmetic"]
STUDY += ["sweep.confirm.seeds=[1,2]"]
STUDY += ["train.max_steps=12", "train.warmup_steps=2", "train.checkpoint_every=3", "train.batch_size=4"]
STUDY += ["eval.tasks.generation=null", "eval.every=6", "eval.tasks.forgetting.max_chunks=2"]
STUDY += ["eval.tasks.answer_loss.max_items=20", "eval.tasks.validation_answer_loss.max_items=10"]
RUNS = 4 + 2


def ablora(folder: Path, *arguments: str) -> subprocess.Popen:
    """The command in a process group of its own, so that a kill takes its workers too."""
    environment = {**os.environ, "ABLORA_RUNS": str(folder / "runs"), "ABLORA_CACHE": str(folder / "cache")}
    command = [sys.executable, "-m", "ablora.cli", *arguments]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True, stdout=quiet, stderr=quiet)


def finish(folder: Path, *arguments: str) -> float:
    began = time.monotonic()
    assert ablora(folder, *arguments).wait(timeout=900) == 0
    return time.monotonic() - began


def table(folder: Path) -> bytes:
    finish(folder, "collect", "demo")
    return (folder / "studies" / "demo" / "tables" / "runs.csv").read_bytes()


def kill_everything(folder: Path, process: subprocess.Popen) -> None:
    """SIGKILL for the controller's group and for workers that live in groups of their own."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"ABLORA_RUNS={folder / 'runs'}".encode() in path.read_bytes():
                os.kill(int(path.parent.name), signal.SIGKILL)
        except (OSError, ProcessLookupError):
            continue


def campaign(tmp_path: Path, kills: int, seed: int) -> None:
    (tmp_path / "calm").mkdir()
    (tmp_path / "storm").mkdir()
    took_s = finish(tmp_path / "calm", "run", "-m", *STUDY)
    wanted = table(tmp_path / "calm")
    rng = random.Random(seed)
    for _ in range(kills):
        process = ablora(tmp_path / "storm", "run", "-m", *STUDY)
        try:
            process.wait(timeout=rng.uniform(0.1, took_s))
        except subprocess.TimeoutExpired:
            kill_everything(tmp_path / "storm", process)
    finish(tmp_path / "storm", "run", "-m", *STUDY)
    assert table(tmp_path / "storm") == wanted
    folders = [RunFolder(path) for path in sorted((tmp_path / "storm" / "runs").iterdir())]
    assert len(folders) == RUNS
    for folder in folders:
        assert [e["state"] for e in lines.read(folder.events)].count("done") == 1
        records = list(lines.read(folder.metrics))
        assert [r["step"] for r in records if r["kind"] == "train"] == list(range(1, 13))
        calm = RunFolder(tmp_path / "calm" / "runs" / folder.id)
        assert records == list(lines.read(calm.metrics))
        for file in ("adapter/ablora_adapter.safetensors", "result.json", "evals/answer_loss.jsonl"):
            assert (folder.path / file).read_bytes() == (calm.path / file).read_bytes(), file
        assert not list(folder.path.rglob("*.aside"))


def test_three_kills(tmp_path):
    campaign(tmp_path, kills=3, seed=1)


@pytest.mark.slow
def test_ten_kills(tmp_path):
    campaign(tmp_path, kills=10, seed=0)

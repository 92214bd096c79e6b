"""SIGKILL at random moments: every run done once, none from zero that had a checkpoint, and the table the undisturbed
one, bit for bit. The undisturbed study trains in packs of four and two; what was killed goes on in smaller ones."""

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from ablora.store import lines
from ablora.store.run_folder import RunFolder
from ablora.train import checkpoint

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
    """Studies, one after another, each killed at random moments until it is through, until there were `kills`."""
    calm = tmp_path / "calm"
    calm.mkdir()
    took_s = finish(calm, "run", "-m", *STUDY)
    wanted, rng = table(calm), random.Random(seed)
    storms = itertools.count(1)
    while kills > 0:
        storm = tmp_path / f"storm{next(storms)}"
        storm.mkdir()
        marks: list[Mark] = []
        while kills > 0 and not killed_too_late(storm, rng.uniform(0.1, took_s)):
            marks.extend(marks_of(storm))
            kills -= 1
        finish(storm, "run", "-m", *STUDY)
        assert table(storm) == wanted
        require_whole(storm, calm)
        for mark in marks:
            require_no_way_back(mark)
        print(f"{len({m.events for m in marks})} deaths told by runs of {storm.name}; {kills} kills to go", flush=True)


def killed_too_late(folder: Path, after_s: float) -> bool:
    """Run the study and kill all of it after some time; whether it was through before."""
    process = ablora(folder, "run", "-m", *STUDY)
    try:
        process.wait(timeout=after_s)
    except subprocess.TimeoutExpired:
        kill_everything(folder, process)
        return False
    return True


class Mark(NamedTuple):
    """What a killed run has on disk."""

    folder: RunFolder
    events: int
    step: int
    """Of its checkpoint."""


def marks_of(folder: Path) -> list[Mark]:
    runs = [RunFolder(path) for path in (folder / "runs").glob("*")]
    marks = []
    for run in runs:
        if not run.result.exists() and (saved := checkpoint.load(run.checkpoint)) is not None:
            marks.append(Mark(run, len(list(lines.read(run.events))), saved.counters["step"]))
    return marks


def require_no_way_back(mark: Mark) -> None:
    """The next start after a death begins at the checkpoint that there was, or further."""
    later = [e for e in list(lines.read(mark.folder.events))[mark.events :] if e["state"] == "running"]
    assert later, mark
    assert later[0]["step"] >= mark.step, mark


def require_whole(storm: Path, calm: Path) -> None:
    """Every run done once, with the lines and files of the undisturbed one, and nothing left over."""
    folders = [RunFolder(path) for path in sorted((storm / "runs").iterdir())]
    assert len(folders) == RUNS
    for folder in folders:
        assert [e["state"] for e in lines.read(folder.events)].count("done") == 1
        records = list(lines.read(folder.metrics))
        assert [r["step"] for r in records if r["kind"] == "train"] == list(range(1, 13))
        other = RunFolder(calm / "runs" / folder.id)
        assert records == list(lines.read(other.metrics))
        for file in ("adapter/ablora_adapter.safetensors", "result.json", "evals/answer_loss.jsonl"):
            assert (folder.path / file).read_bytes() == (other.path / file).read_bytes(), file
        assert not list(folder.path.rglob("*.aside"))
        assert not list(folder.path.rglob("*.partial.jsonl"))


def test_three_kills(tmp_path):
    campaign(tmp_path, kills=3, seed=1)


@pytest.mark.slow
def test_many_kills(tmp_path):
    campaign(tmp_path, int(os.environ.get("KILLS", "100")), int(os.environ.get("SEED", "0")))

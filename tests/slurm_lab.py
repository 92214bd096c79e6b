"""A study on the test cluster: commands, what SLURM and the disk say of it, and things done to it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ablora.cli import main
from ablora.dispatch import scheduler, submissions
from ablora.dispatch.scheduler import Task
from ablora.store import lines
from ablora.store.roots import Roots
from ablora.store.run_folder import RunFolder, folder_of
from ablora.study.manifest import existing_study
from ablora.study.status import Standing, study_standings

TESTS = Path(__file__).parent
KILL_WAIT_S = 5
PATIENCE_S = 900
"""How long anything may take: a start of Python took two minutes on a machine with ten others at work."""
CLUSTER = ["cluster=slurm", "cluster.poll_s=1", "cluster.gpus=0", "cluster.cpus=1", "cluster.memory=900M",
           "cluster.prepare=false"]  # fmt: skip
STUDY = ["train=quick", "tracker=off", "pack=1", "study=s", *CLUSTER]  # a task of its own for each run
CONTROLLER = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "  # a job of a shell ignores it
    "import ablora.dispatch.slurm, fake_task; ablora.dispatch.slurm.work_in_task = fake_task.work_in_task; "
    "from ablora.cli import main; sys.exit(main(sys.argv[1:]))"
)


def said(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE_S).stdout


def until(holds: Callable[[], object], patience_s: float = PATIENCE_S) -> None:
    end = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < end, said("squeue") + said("sinfo", "--Node")
        time.sleep(0.1)


def deaf_to(number: signal.Signals, task: str) -> list[str]:
    """The task's processes of Python that keep a signal back. A step that squeue knows may have none yet, and a signal
    to it is lost."""
    return [path.name for path in Path("/proc").iterdir() if path.name.isdigit() and _is_deaf(path, number, task)]


def _is_deaf(process: Path, number: signal.Signals, task: str) -> bool:
    try:
        if not (process / "exe").resolve().name.startswith("python"):
            return False  # srun keeps some back for a thread of its own
        if f"SLURM_JOB_ID={task}".encode() not in (process / "environ").read_bytes().split(b"\0"):
            return False
        kept = next(line for line in (process / "status").read_text().splitlines() if line.startswith("SigBlk:"))
    except OSError:
        return False  # it has ended
    return bool(int(kept.split()[1], 16) >> (number - 1) & 1)


class Lab:
    """One study, `s`."""

    def __init__(self, roots: Roots):
        self.roots, self.study = roots, roots.studies / "s"
        self.controllers: list[subprocess.Popen] = []

    def run(self, *arguments: str) -> int:
        return main(["run", "-m", *STUDY, *arguments])

    def start(self, *arguments: str, program: str = CONTROLLER, path: Path = TESTS) -> subprocess.Popen:
        """The same command in a process of its own."""
        environment = {**os.environ, "PYTHONPATH": str(path)}
        command = [sys.executable, "-c", program, "run", "-m", *STUDY, *arguments]
        made = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
        self.controllers.append(made)
        return made

    def end(self) -> None:
        """End what a test has left: controllers first, so that nothing is sent any more, then its tasks."""
        for controller in self.controllers:
            if controller.poll() is None:
                os.killpg(controller.pid, signal.SIGKILL)
                controller.wait()
        for task in self.queued() if self.study.exists() else ():
            subprocess.run(["scancel", "--signal=KILL", "--full", task])
            subprocess.run(["scancel", task])

    def records(self) -> list[submissions.Submission]:
        """What was sent, for the study's runs and, of a search, for its trials."""
        return [record for folder in (self.study, self.study / "search") for record in submissions.read(folder)]

    def folder(self, seed: int) -> RunFolder:
        rows = lines.read(self.study / "manifest.jsonl")
        folders = (folder_of(self.roots, row["id"]) for row in rows)
        return next(folder for folder in folders if folder.read_tree()["seed"] == seed)

    def standing(self, seed: int) -> Standing:
        return study_standings(self.roots, existing_study(self.roots, "s"))[self.folder(seed).id]

    def task(self, seed: int) -> str:
        """The name of the run's newest task."""
        run = self.folder(seed).id
        found = [(record, i) for record in submissions.read(self.study) for i, runs in enumerate(record.tasks)
                 if run in runs and record.job]  # fmt: skip
        record, index = found[-1]
        return str(record.task(index))

    def queued(self) -> dict[str, Task]:
        """This study's tasks in the queue."""
        names = {record.name for record in self.records()}
        return {known: task for known, task in scheduler.queued(["root"]).items() if task.name in names}

    def told(self) -> str:
        """What the tasks have written and what SLURM says of them, for a test that fails."""
        logs = "".join(f"--- {path.name}\n{path.read_text()}" for path in sorted((self.study / "jobs").glob("*_log.*")))
        jobs = ",".join(str(record.job) for record in self.records())
        return logs + said("sacct", "--duplicates", f"--jobs={jobs}", "--format=JobID,State,ExitCode,Start,End,Reason")

    def starts(self, seed: int) -> int:
        file = self.folder(seed).path / "executed.txt"
        return len(file.read_text().splitlines()) if file.exists() else 0

    def pid(self, seed: int) -> int:
        return int((self.folder(seed).path / "executed.txt").read_text().splitlines()[-1])

    def steps(self, seed: int) -> list[int]:
        return [record["step"] for record in lines.read(self.folder(seed).metrics) if record["kind"] == "train"]

    def trains(self, seed: int) -> bool:
        return (self.study / "manifest.jsonl").exists() and len(self.steps(seed)) > 3

    def go(self) -> None:
        """Runs of the seed UNTIL end at their next step."""
        (self.roots.runs / "go").touch()

    def end_time(self, task: str) -> None:
        """Shorten a running task's time so that it ends within two minutes, however long the task took to start."""
        used = scheduler.minutes(said("squeue", "--noheader", "--job", task, "--format=%M")) or 0
        said("scontrol", "update", f"JobId={task}", f"TimeLimit={used + 1}")

    def start_now(self, task: str) -> None:
        """Shorten the two minutes for which SLURM keeps a requeued task; not to nothing: its node goes on killing what
        has the task's number until KillWait (5 s here) is over, and one that was started within it was seen to die."""
        until(lambda: self.queued().get(task, Task("", "", 0, "")).state == "PENDING")
        time.sleep(KILL_WAIT_S + 2)
        until(lambda: subprocess.run(["scontrol", "update", f"JobId={task}", "StartTime=now"]).returncode == 0)

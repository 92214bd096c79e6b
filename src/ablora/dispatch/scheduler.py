"""SLURM's commands, asked and read; nothing here knows of studies or runs."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import NamedTuple

PATIENCE_S = 60
FINAL = frozenset(
    ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED")
) | {"TIMEOUT"}
"""States of sacct that do not change any more."""
BRACKET = re.compile(r"(\d+)_\[([\d,-]+)(?:%\d+)?\]")


class NoAnswer(RuntimeError):  # noqa: N818 -- what happened
    """SLURM is not there or does not answer: nothing is known, and nothing may be taken for dead."""


class Task(NamedTuple):
    """One row of squeue."""

    state: str
    """PENDING, RUNNING, COMPLETING, ..."""
    reason: str
    restart: int
    """How often it was requeued."""
    name: str


def ask(*command: str) -> str:
    """What a command of SLURM prints; `NoAnswer` with what it says where it fails."""
    if shutil.which(command[0]) is None:
        raise NoAnswer(f"no {command[0]} here")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    except subprocess.TimeoutExpired as error:
        raise NoAnswer(f"{command[0]} did not answer in {PATIENCE_S} s") from error
    if done.returncode:
        raise NoAnswer(f"{command[0]}: {' '.join((done.stderr or done.stdout).split()) or done.returncode}")
    return done.stdout


def queued(users: Iterable[str]) -> dict[str, Task]:
    """Every task of some users that waits, runs or is about to end, by its name "25_1" (a single job: "25")."""
    fields = "ArrayJobID:|,ArrayTaskID:|,State:|,RestartCnt:|,Reason:|,Name:|"
    out = {}
    for line in ask("squeue", f"--user={','.join(users)}", "--noheader", "--array", f"--Format={fields}").splitlines():
        job, task, state, restart, reason, name, *_ = line.split("|")
        known = job if task == "N/A" else f"{job}_{task}"
        out[known] = Task(state, "" if reason == "None" else reason, int(restart or 0), name)
    return out


def ended(jobs: Iterable[str]) -> dict[str, str]:
    """The last known state of the tasks of some jobs, final or not, by name; as sacct says it, with the exit code.

    A task whose step ran out of memory counts so: srun and the batch script around it only FAILED. A row for
    pending tasks, 29_[1-7], goes on to cover those that have run: a task's own row wins.
    """
    said = ask("sacct", "--noheader", "--parsable2", f"--jobs={','.join(jobs)}", "--format=JobID,State,ExitCode")
    rows = [line.split("|")[:3] for line in said.splitlines()]
    out: dict[str, str] = {}
    for job, state, _ in rows:
        if match := BRACKET.fullmatch(job):
            out |= {f"{match[1]}_{i}": state.split()[0] for i in _expanded(match[2])}
    for job, state, code in rows:
        if "." not in job and "[" not in job:
            word = state.split()[0]
            out[job] = f"FAILED {code}" if word == "FAILED" else word
    for job, state, _ in rows:
        task, dot, _ = job.partition(".")
        if dot and state == "OUT_OF_MEMORY" and out.get(task, "").startswith("FAILED"):
            out[task] = state
    return out


def remembered(jobs: Iterable[str]) -> dict[str, str]:
    """The state of the tasks of some jobs that slurmctld still knows (MinJobAge, five minutes), by name. It knows of an
    end at once, which the accounting may hear of much later."""
    said = ask("squeue", "--states=all", "--noheader", "--array", f"--jobs={','.join(jobs)}",
               "--Format=ArrayJobID:|,ArrayTaskID:|,State:|")  # fmt: skip
    rows = (line.split("|")[:3] for line in said.splitlines())
    return {job if task == "N/A" else f"{job}_{task}": state for job, task, state in rows}


def _expanded(indices: str) -> Iterator[int]:
    for part in indices.split(","):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


def configuration() -> dict[str, str]:
    """What `scontrol show config` lists: ClusterName, MaxArraySize, ...; and `as of`, slurmctld's clock."""
    said = ask("scontrol", "show", "config").replace("Configuration data as of ", "as of=", 1)
    pairs = (line.partition("=") for line in said.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


class Start(NamedTuple):
    """Slurmctld's last start."""

    time_s: float
    """By its machine's clock."""
    next_job: int
    """The number of the next job, now. One that was given before and is not less was forgotten in the start."""


def start() -> Start | None:
    """When slurmctld was started, and what it will call the next job; None where it does not say."""
    try:
        found = configuration()
        return Start(datetime.fromisoformat(found["BOOT_TIME"]).timestamp(), int(found["NEXT_JOB_ID"]))
    except (NoAnswer, KeyError, ValueError):
        return None


def age_s() -> float | None:
    """How long slurmctld has been up, by its own clock alone; None where it does not say."""
    try:
        found = configuration()
        return (datetime.fromisoformat(found["as of"]) - datetime.fromisoformat(found["BOOT_TIME"])).total_seconds()
    except (NoAnswer, KeyError, ValueError):
        return None


def gib(text: str) -> float:
    """An amount of memory as SLURM writes it: a number of megabytes, or one with K, M, G or T behind it."""
    number, unit = text.rstrip("B"), "M"
    if number[-1] in "KMGT":
        number, unit = number[:-1], number[-1]
    return float(number) * 1024.0 ** ("KMGT".index(unit) - 2)


def minutes(text: str | int) -> int | None:
    """A time as SLURM writes and reads it, rounded up to minutes; None for one without an end.

    minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes, days-hours:minutes:seconds.
    Raises ValueError for what is none of these.
    """
    text = str(text).strip()
    if text.upper() in ("INFINITE", "UNLIMITED"):
        return None
    days, dash, rest = text.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if len(parts) > 3 or min(parts) < 0:
        raise ValueError(text)
    if dash:
        hours, least, seconds = parts + [0] * (3 - len(parts))
    elif len(parts) == 3:
        hours, least, seconds = parts
    else:
        hours, least, seconds = 0, parts[0], parts[1] if len(parts) == 2 else 0
    return ((int(days) if dash else 0) * 24 + hours) * 60 + least + (seconds > 0)


def without_a_job() -> dict[str, str]:
    """This environment without an allocation's own variables: given from inside a job they would steer the next."""
    return {name: value for name, value in os.environ.items() if not name.startswith("SLURM_") or name == "SLURM_CONF"}

"""Who runs a run: claims by generation, made by link, judged stale by asking the host, never by clocks.

claim.0.json, claim.1.json, ... A claim is taken over by making the next generation, which only one process can do
(`link` refuses an existing name). An owner that finds a newer generation than its own stops writing: a process on a
node that was declared lost may run on, and must not disturb its successor.
"""

import json
import os
import socket
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablora.store.run_folder import RunFolder

Alive = Callable[[dict[str, Any]], bool]
"""Whether the process of a claim's owner lives."""


class Fenced(RuntimeError):  # noqa: N818 -- what happened to the owner
    """This process no longer owns the run: a newer claim exists."""


@dataclass(frozen=True, slots=True)
class Claim:
    """This process's hold on a run."""

    folder: RunFolder
    generation: int

    def fence(self) -> None:
        """Raise `Fenced` if another process has taken the run over; called before every write that matters."""
        if (self.folder.path / f"claim.{self.generation + 1}.json").exists():
            raise Fenced(f"run {self.folder.id}: claim {self.generation} was taken over")


def whoami() -> dict[str, Any]:
    """This process, in words that another can check: host, boot id, pid and its start time; in a job of SLURM also
    the task, how often it was requeued before, and the cluster's name."""
    pid = os.getpid()
    return {"host": _host(), "boot": _boot_id(), "pid": pid, "started": _start_time(pid), **_slurm_task()}


def _slurm_task() -> dict[str, Any]:
    # ARRAY_TASK and not the raw number: that of an array's last task is the array's own.
    job, array, task = map(os.environ.get, ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"))
    if job is None:
        return {}
    restart = int(os.environ.get("SLURM_RESTART_COUNT", 0))
    name = f"{array}_{task}" if array else job
    return {"slurm": name, "restart": restart, "cluster": os.environ.get("SLURM_CLUSTER_NAME")}


def is_here(owner: dict[str, Any]) -> bool:
    """Whether the owner's process can be looked at from this one."""
    return owner["host"] == _host()


def _host() -> str:
    """A node's name in a job of SLURM: several nodes may be one machine, and a lost one must not vouch for another."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def alive_here(owner: dict[str, Any]) -> bool:
    """Whether the owner's process lives. On another host it cannot be asked, and counts as alive."""
    if not is_here(owner):
        return True
    return owner["boot"] == _boot_id() and _start_time(owner["pid"]) == owner["started"]


def latest(folder: RunFolder) -> int:
    """The newest generation, -1 if nobody ever claimed the run."""
    numbers = (path.name.split(".")[1] for path in folder.path.glob("claim.*.json"))
    return max((int(number) for number in numbers if number.isdigit()), default=-1)


def owner_of(folder: RunFolder, generation: int) -> dict[str, Any]:
    return json.loads((folder.path / f"claim.{generation}.json").read_text())


def is_held(folder: RunFolder, alive: Alive = alive_here) -> bool:
    """Whether a living process runs this run now."""
    return _lives(folder, latest(folder), alive)


def is_held_beside(folder: RunFolder) -> bool:
    """Whether another living process of this host runs this run now: one whose end can be waited for."""
    generation = latest(folder)
    if generation < 0 or _released(folder, generation):
        return False
    owner = owner_of(folder, generation)
    return is_here(owner) and owner["pid"] != os.getpid() and alive_here(owner)


def deaths(folder: RunFolder) -> int:
    """How many owners ended without a word: killed, or with their machine. Of a run that nobody holds now."""
    return sum(not _released(folder, generation) for generation in range(latest(folder) + 1))


def take(folder: RunFolder, alive: Alive = alive_here) -> Claim | None:
    """Claim the run for this process, or None while a living process holds it.

    The generation that was judged dead is the one that is followed. Reading the newest again after the judgement would
    follow a claim that another process made in between, and take the run from a living owner.
    """
    judged = latest(folder)
    if _lives(folder, judged, alive):
        return None
    generation = judged + 1
    aside = folder.path / f".claim-{uuid.uuid4().hex}"
    aside.write_text(json.dumps(whoami()))
    try:
        os.link(aside, folder.path / f"claim.{generation}.json")
    except FileExistsError:
        return None
    finally:
        aside.unlink()
    return Claim(folder, generation)


def release(claim: Claim) -> None:
    """Say that the owner is through with the run; its process may live on (a worker that drains several)."""
    (claim.folder.path / f"claim.{claim.generation}.released").touch()


def _lives(folder: RunFolder, generation: int, alive: Alive) -> bool:
    return generation >= 0 and not _released(folder, generation) and alive(owner_of(folder, generation))


def _released(folder: RunFolder, generation: int) -> bool:
    return (folder.path / f"claim.{generation}.released").exists()


def _boot_id() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else "unknown"


def _start_time(pid: int) -> str | None:
    """Clock ticks from boot to the process's start (proc(5), field 22), so that a reused pid is not the owner.

    None for a process that is gone, or dead and not yet waited for by its parent (a zombie has its entry still).
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]

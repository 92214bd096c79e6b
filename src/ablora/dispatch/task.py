"""What a task of SLURM does: its packs, until they are through, time runs out, or SLURM takes the node away."""

import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from ablora.dispatch.attempts import is_exhausted
from ablora.dispatch.base import Interrupted, Job
from ablora.models.staging import STAGE
from ablora.store import lines
from ablora.store.claims import alive_here, latest, owner_of, whoami
from ablora.store.run_folder import RunFolder, folder_of

AGAIN = 75
"""The exit code that asks the batch script to requeue the task. It does so and not Python, because a container need not
hold SLURM's commands."""
AGAIN_FILE = "ABLORA_AGAIN"
"""The variable with the file that asks for the same where a task has several processes: srun gives one exit code."""

PLACE = (("SLURM_LOCALID", "0"), ("SLURM_STEP_NUM_TASKS", "1"))
GPUS = "CUDA_VISIBLE_DEVICES"
Pack = tuple[str, ...]


class Told(KeyboardInterrupt):
    """A signal came while no run was training."""

    def __init__(self, number: int):
        self.signal = signal.Signals(number)
        super().__init__(self.signal.name)


def work_in_task(job: Job, sent: Mapping[str, int], threads: int, short_s: float | None) -> None:
    """Work through the job's packs, going on where an earlier life of this task left them.

    `sent`: the claims there were when the job was sent, which the sender found dead or released. A run that somebody
    else claimed since is left alone: the next command sees how that went.
    Signals: submitit ignores SIGTERM and answers SIGUSR2 in the middle of whatever is done. Here both stop a training
    run at its next step, with its checkpoint. After SIGUSR2 the task asks to be requeued, unless this life has got no
    run further in more than `short_s`: it would do the same again for ever. One that was told sooner, or that has no
    end (`short_s` is None), was preempted.
    Of several processes of a task each begins with packs of its own, and helps with the others' when it is through.
    """
    began = time.monotonic()
    signal.signal(signal.SIGTERM, _told)
    signal.signal(signal.SIGUSR2, _told)
    mine = replace(job, packs=_own_first(job.packs, *_take_place()))
    from ablora.dispatch.job import last_step  # imports torch

    folders = [folder_of(job.roots, run) for run in job.runs]
    seen, dead = _judged(folders, sent)
    before = [_progress(folder, last_step(folder)) for folder in folders]
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGUSR2,))  # the batch script kept it back until here
        mine.work(mine, threads=threads, seen=seen, alive=lambda owner: owner not in dead and alive_here(owner))
    except (Interrupted, KeyboardInterrupt) as stop:
        if _signal_of(stop) != signal.SIGUSR2:
            return
        took_long = short_s is not None and time.monotonic() - began > short_s
        if took_long and before == [_progress(folder, last_step(folder)) for folder in folders]:
            print("ablora: no step was made in the time that the task had; it is not requeued", file=sys.stderr)
            return
        sys.stderr.flush()
        if AGAIN_FILE in os.environ:
            Path(os.environ[AGAIN_FILE]).touch()
        sys.exit(AGAIN)


def _take_place() -> tuple[int, int]:
    """Which of how many processes on its node this one is; with several it sees its own GPU alone from here on.

    Not by srun's --gpus-per-task, which has changed its meaning between releases, but of what the task may see, the
    one with this process's number; a site that has given each process its own already is left at that.
    """
    number, count = (int(os.environ.get(name, default)) for name, default in PLACE)
    if count > 1:
        seen = os.environ.get(GPUS, ",".join(map(str, range(count)))).split(",")
        if len(seen) >= count:
            os.environ[GPUS] = seen[number]
    return number, count


def _own_first(packs: Sequence[Pack], number: int, count: int) -> tuple[Pack, ...]:
    """Every count-th pack from its own number on, then the others' from their ends, which they come to last."""
    others = (packs[(number + i) % count :: count][::-1] for i in range(1, count))
    return tuple(pack for some in (packs[number::count], *others) for pack in some)


def _judged(folders: list[RunFolder], sent: Mapping[str, int]) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """The claims that this task may follow, and their owners: what the sender judged, or this task's earlier life."""
    seen, dead = dict(sent), []
    for folder in folders:
        newest = latest(folder)
        if newest < 0:
            continue
        owner = owner_of(folder, newest)
        if newest == sent[folder.id] or (_is_earlier_self(owner) and not is_exhausted(folder)):
            seen[folder.id] = newest
            dead.append(owner)
    return seen, dead


def _is_earlier_self(owner: Mapping[str, Any]) -> bool:
    """The same task before it was requeued. On a lost node that process may run on; the claim's fence stops it."""
    me = whoami()
    same = "slurm" in me and all(owner.get(key) == me[key] for key in ("slurm", "cluster"))
    return same and owner["restart"] < me["restart"]


def _progress(folder: RunFolder, step: int) -> tuple[int, int, bool]:
    """Steps, items of an evaluation under way, and whether it is over."""
    items = sum(1 for path in folder.path.glob("evals/*.partial.jsonl") for _ in lines.read(path))
    return step, items, folder.result.exists() or folder.failure.exists()


def _signal_of(stop: BaseException) -> signal.Signals | None:
    cause = stop.__cause__ if isinstance(stop, Interrupted) else stop
    return getattr(cause, "signal", None)


def _told(number: int, frame: FrameType | None) -> NoReturn:
    raise Told(number)


def environment(job: Job, code: str, stage: str | None = None) -> dict[str, str]:
    """What a task finds in its environment: the same folders, the frozen code in front of everything else, no
    bytecode written into it, and where its node keeps the base."""
    path = os.environ.get("PYTHONPATH")
    near = {} if stage is None else {STAGE: stage}
    front = f"{code}:{path}" if path else code
    return {**job.environment(), **near, "PYTHONPATH": front, "PYTHONDONTWRITEBYTECODE": "1"}

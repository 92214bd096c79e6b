"""What a worker process does; pickled by reference, so this module imports little before the environment is set."""

import os
import signal
from collections.abc import Mapping
from types import FrameType
from typing import NoReturn

from ablora.dispatch.base import Interrupted, Job


def work_in_worker(job: Job, seen: Mapping[str, int], threads: int, visible_gpus: str | None) -> None:
    """Drain the job's packs until they are through or the process is told to stop.

    submitit ignores SIGTERM in its jobs, which would lose everything since the last checkpoint. Ours raises: outside
    of training there is nothing to save, and while a run trains, training's own handler waits for the step's end.
    """
    if visible_gpus is None:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible_gpus
    signal.signal(signal.SIGTERM, _interrupt)

    try:
        job.work(job, threads=threads, seen=seen)
    except (Interrupted, KeyboardInterrupt):
        return  # the runs say how far they came


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt

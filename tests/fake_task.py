"""A task of SLURM that trains with `fake_execute`; submitit pickles it by reference, so it is importable by path."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from ablora.dispatch.base import Job
from ablora.dispatch.task import work_in_task as real
from ablora.store.run_folder import RunFolder


def work_in_task(job: Job, sent: Mapping[str, int], threads: int, short_s: float | None) -> None:
    from ablora.dispatch import job as jobs

    jobs.execute = execute
    real(job, sent, threads, short_s)


def execute(pack: Sequence[RunFolder], *others: Any) -> None:
    """Has the contract of `fake_execute.execute`, and writes down which GPUs a run's process saw."""
    import fake_execute

    for folder in pack:
        (folder.path / "gpus.txt").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
    fake_execute.execute(pack, *others)

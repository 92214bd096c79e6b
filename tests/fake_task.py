"""A task of SLURM that trains with `fake_execute`; submitit pickles it by reference, so it is importable by path."""

from collections.abc import Mapping

from ablora.dispatch.base import Job
from ablora.dispatch.task import work_in_task as real


def work_in_task(job: Job, sent: Mapping[str, int], threads: int) -> None:
    import fake_execute
    from ablora.dispatch import job as jobs

    jobs.execute = fake_execute.execute
    real(job, sent, threads)

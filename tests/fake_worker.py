"""A worker process that trains with `fake_execute`; submitit pickles it by reference, so it is importable by path."""

from collections.abc import Mapping

from ablora.dispatch import job as jobs
from ablora.dispatch.base import Job
from ablora.dispatch.worker import work_in_worker as real


def work_in_worker(job: Job, seen: Mapping[str, int], threads: int, visible_gpus: str | None) -> None:
    import fake_execute

    jobs.execute = fake_execute.execute
    real(job, seen, threads, visible_gpus)

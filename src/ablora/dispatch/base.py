"""What a place to run does: drain a job's packs. Its value is one of conf/cluster."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ablora.store.claims import latest
from ablora.store.roots import Roots
from ablora.store.run_folder import folder_of
from ablora.track import TrackerConfig


def train(job: "Job", **how: Any) -> None:
    """What a process does with a job of runs: `ablora.dispatch.job.work`."""
    from ablora.dispatch.job import work  # late: it imports torch, which reads the environment

    work(job, **how)


@dataclass(frozen=True, slots=True)
class Job:
    """All that a worker is told: which runs, and where things are. What a run is, it reads in the run's folder."""

    packs: tuple[tuple[str, ...], ...]
    """Run ids; the runs of one pack train together."""
    roots: Roots
    study: str | None
    tracker: TrackerConfig
    work: Callable[..., None] = train
    """What is done with it: called with the job, `observers`, `threads`, `seen` and `alive`."""
    home: Roots | None = None
    """The folders of the process's environment, where they are not `roots`."""

    def environment(self) -> dict[str, str]:
        return (self.home or self.roots).environment()

    @property
    def runs(self) -> list[str]:
        return [run for pack in self.packs for run in pack]

    def claims(self) -> dict[str, int]:
        """The newest claim's generation of every run, now; -1 for a run that was never claimed."""
        return {run: latest(folder_of(self.roots, run)) for run in self.runs}


class Cluster(Protocol):
    """A frozen dataclass of its settings, and the behaviour."""

    def drain(self, job: Job, folder: Path | None) -> None:
        """Try every run of the job once and return; how each went is in its folder.

        `folder` is the study's folder for what the place itself needs to write (none for a single run without a
        study). Raises `Interrupted` after an interrupt, when the runs have been left resumable.
        """
        ...

    @property
    def needs_folder(self) -> bool: ...

    @property
    def places(self) -> int:
        """Packs that it runs at once and that had better not be fewer; 1 where a pack more has to wait anyway, or
        costs a machine more."""
        ...

    @property
    def prepares(self) -> bool:
        """Whether a job for each base fills the caches before the runs that need them."""
        ...

    @property
    def memory_gib(self) -> float | None:
        """What one pack may take; None where that is not known."""
        ...

    def at_once(self, packs: int) -> int:
        """Of so many packs, those that may run at the same time."""
        ...

    def jobs(self, packs: int) -> str:
        """What would be started for so many packs, in words."""
        ...

    def require_usable(self, packs: int) -> None:
        """Refuse, before anything is written, a place that is not there or would not take so many packs."""
        ...

    def follow(self, job: Job, folder: Path | None) -> bool:
        """Watch runs that an earlier command sent until none of them waits or runs; False: it does not watch."""
        ...


class Interrupted(Exception):  # noqa: N818 -- what happened
    """The user or the system stopped the work; checkpoints are written, and the same command goes on."""

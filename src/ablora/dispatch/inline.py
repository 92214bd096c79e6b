"""cluster=inline: this process, one pack after another, with a live progress bar."""

from dataclasses import dataclass
from pathlib import Path

from ablora.dispatch.base import Job
from ablora.dispatch.memory import place_gib
from ablora.dispatch.progress import RunProgress
from ablora.spec import check


@dataclass(frozen=True, kw_only=True, slots=True)
class Inline:
    """Run here and now."""

    threads: int | None = None
    """Threads of a run's matrix products; null: as many as torch takes by itself."""

    def __post_init__(self) -> None:
        check(self.threads is None or self.threads >= 1, "threads", self.threads, "null, or an integer of at least 1")

    @property
    def needs_folder(self) -> bool:
        return False

    @property
    def places(self) -> int:
        return 1

    @property
    def prepares(self) -> bool:
        return False

    @property
    def memory_gib(self) -> float | None:
        return place_gib(1)

    def at_once(self, packs: int) -> int:
        return min(1, packs)

    def jobs(self, packs: int) -> str:
        return "none: this process runs one pack after another"

    def require_usable(self, packs: int) -> None:
        """This machine is always there."""

    def follow(self, job: Job, folder: Path | None) -> bool:
        return False

    def drain(self, job: Job, folder: Path | None) -> None:
        with RunProgress(total=len(job.runs)) as progress:
            job.work(job, observers=[progress], threads=self.threads)

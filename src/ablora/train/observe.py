"""Who watches a run: progress bars and trackers. An observer sees what the run folder gets, in the same order."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from ablora.spec import RunSpec
from ablora.store.run_folder import RunFolder, State


@runtime_checkable
class Observer(Protocol):
    """Told of a run's life after the run folder knows it; what it raises is the caller's bug, so it raises nothing."""

    def started(self, folder: RunFolder, spec: RunSpec, step: int) -> None:
        """The run begins, or goes on after `step`; metrics.jsonl holds the kept lines up to that step."""
        ...

    def recorded(self, folder: RunFolder, record: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl."""
        ...

    def timed(self, folder: RunFolder, record: Mapping[str, Any]) -> None:
        """A line of timing.jsonl."""
        ...

    def finished(self, folder: RunFolder, state: State) -> None:
        """The run is done or failed; result.json or failure.json is there."""
        ...

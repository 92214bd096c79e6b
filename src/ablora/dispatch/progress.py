"""Live progress on stderr: each run that trains here with its loss, tokens/s and time left; or how many are done."""

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from ablora.spec import RunSpec
from ablora.store.run_folder import RunFolder, State, metric_name


def _bars() -> Progress:
    # A file or a pipe gets no bars, only the lines that are printed: one per finished run.
    console = Console(file=sys.stderr)
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn())
    facts = TextColumn("{task.fields[facts]}")
    return Progress(*columns, facts, TimeRemainingColumn(), console=console, disable=not console.is_terminal)


BESIDE_THE_BAR = ("loss", "speed")
"""What fits into 80 columns with the bar and the time left; the evaluations stand in the last line of a run."""


@dataclass(slots=True)
class _Shown:
    """A run that trains."""

    bar: TaskID
    started_s: float
    facts: dict[str, str] = field(default_factory=dict)


class RunProgress:
    """An observer: a bar for each run that trains, and one over the runs when there are several."""

    def __init__(self, total: int):
        self.bars = _bars()
        self.overall = self.bars.add_task("runs", total=total, facts="") if total > 1 else None
        self.shown: dict[str, _Shown] = {}

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def started(self, folder: RunFolder, spec: RunSpec, step: int) -> None:
        if (before := self.shown.pop(folder.id, None)) is not None:  # what is left of a pack that was cut
            self.bars.remove_task(before.bar)
        name = f"{folder.id} {getattr(spec.method, 'name', '')}".strip()
        bar = self.bars.add_task(name, total=spec.train.max_steps, completed=step, facts="")
        self.shown[folder.id] = _Shown(bar, time.monotonic())

    def recorded(self, folder: RunFolder, record: Mapping[str, Any]) -> None:
        shown = self.shown[folder.id]
        if record.get("kind") == "train":
            shown.facts["loss"] = f"loss {record['loss_nats']:.3f} nats"
            self._show(shown, completed=record["step"])
        elif record.get("kind") == "eval":
            for metric, value in record["metrics"].items():
                name = metric_name(record["split"], metric)
                shown.facts[name] = f"{name} {value:.3f}"
            self._show(shown)

    def timed(self, folder: RunFolder, record: Mapping[str, Any]) -> None:
        if "tokens_per_s" in record:
            shown = self.shown[folder.id]
            shown.facts["speed"] = f"{record['tokens_per_s']:,.0f} tokens/s"
            self._show(shown)

    def finished(self, folder: RunFolder, state: State) -> None:
        if self.overall is not None:
            self.bars.advance(self.overall)
        took, facts = "", ""
        if (shown := self.shown.pop(folder.id, None)) is not None:  # None: it failed before it began
            self.bars.remove_task(shown.bar)
            took = f" in {time.monotonic() - shown.started_s:.0f} s"
            facts = "  ".join(value for key, value in shown.facts.items() if key != "speed")
        print_line(self.bars, f"{folder.id} {state}{took}  {facts}".rstrip())

    def _show(self, shown: _Shown, **changes: Any) -> None:
        facts = "  ".join(shown.facts[key] for key in BESIDE_THE_BAR if key in shown.facts)
        self.bars.update(shown.bar, facts=facts, **changes)


class StudyProgress:
    """One bar over runs that train in other processes."""

    def __init__(self, total: int):
        self.bars = _bars()
        self.task = self.bars.add_task("runs", total=total, facts="")

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def ended(self, folder: RunFolder) -> None:
        state = "done" if folder.result.exists() else "failed"
        self.bars.advance(self.task)
        print_line(self.bars, f"{folder.id} {state}")

    def running(self, count: int) -> None:
        self.bars.update(self.task, facts=f"{count} running")


def print_line(bars: Progress, text: str) -> None:
    """A line above the bars, or just a line where there are none."""
    if bars.disable:
        print(text, file=sys.stderr, flush=True)
    else:
        bars.console.print(text, highlight=False, markup=False)

"""Live progress on stderr: the run that trains here with its loss, tokens/s and time left; or how many are done."""

import sys
import time
from collections.abc import Mapping
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


class RunProgress:
    """An observer: one bar for the run that trains, and one over the runs when there are several."""

    def __init__(self, total: int):
        self.bars = _bars()
        self.overall = self.bars.add_task("runs", total=total, facts="") if total > 1 else None
        self.current: TaskID | None = None
        self.facts: dict[str, str] = {}
        self.started_s = time.monotonic()

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def started(self, folder: RunFolder, spec: RunSpec, step: int) -> None:
        self.facts, self.started_s = {}, time.monotonic()
        name = f"{folder.id} {getattr(spec.method, 'name', '')}".strip()
        self.current = self.bars.add_task(name, total=spec.train.max_steps, completed=step, facts="")

    def recorded(self, folder: RunFolder, record: Mapping[str, Any]) -> None:
        if record.get("kind") == "train":
            self.facts["loss"] = f"loss {record['loss_nats']:.3f} nats"
            self._show(completed=record["step"])
        elif record.get("kind") == "eval":
            for metric, value in record["metrics"].items():
                name = metric_name(record["split"], metric)
                self.facts[name] = f"{name} {value:.3f}"
            self._show()

    def timed(self, folder: RunFolder, record: Mapping[str, Any]) -> None:
        if "tokens_per_s" in record:
            self.facts["speed"] = f"{record['tokens_per_s']:,.0f} tokens/s"
            self._show()

    def finished(self, folder: RunFolder, state: State) -> None:
        if self.current is not None:
            self.bars.remove_task(self.current)
            self.current = None
        if self.overall is not None:
            self.bars.advance(self.overall)
        facts = "  ".join(value for key, value in self.facts.items() if key != "speed")
        seconds = time.monotonic() - self.started_s
        print_line(self.bars, f"{folder.id} {state} in {seconds:.0f} s  {facts}".rstrip())

    def _show(self, **changes: Any) -> None:
        if self.current is not None:
            shown = [self.facts[key] for key in BESIDE_THE_BAR if key in self.facts]
            self.bars.update(self.current, facts="  ".join(shown), **changes)


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

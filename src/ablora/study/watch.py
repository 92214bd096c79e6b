"""`ablora watch`: a study's runs as a live table, from disk and SLURM's answer; watching changes nothing."""

import sys
import time
from collections.abc import Iterator, Sequence

from rich.console import Console, ConsoleDimensions, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ablora.dispatch.queue import queue_of
from ablora.store.roots import Roots
from ablora.study.manifest import existing_study
from ablora.study.progress import Seen, Watcher, study_left_s
from ablora.study.status import PRUNED, Standing, counts

DONE, UNFINISHED = 0, 3
LOOK_S = 1.0
WIDE = 100
"""Columns of a screen from which two spaces stand between the table's; in 80 a cell of three axes needs the room."""
NARROW = 64
"""Below this many, run, loss and tokens/s are left out."""
FIRST = ("running", "failed", "lost", "stale", "pruned", "queued", "planned", "done")
"""Which runs get a line where the screen has not enough for all: by state, then in the manifest's order."""
COLOURS = {"running": "cyan", "done": "green", "failed": "red", "lost": "yellow", "stale": "yellow"}
COLUMNS: tuple[str, ...] = ("run", "cell", "state", "step", "loss", "tokens/s", "left")


def watch(roots: Roots, name: str, console: Console | None = None) -> int:
    """Show the study until nothing of it runs or waits; without a terminal once. 0 if every run is done, else 3.

    Ctrl-C ends the watching and nothing else: KeyboardInterrupt goes to the caller (exit code 130).
    """
    study = existing_study(roots, name)
    console = console or Console(file=sys.stdout, highlight=False)
    watcher = Watcher(roots, study.rows(), queue_of(roots, study.path))
    seen = watcher.look()
    if not console.is_terminal:
        print("\n".join(plain(name, seen)))
        return _code(seen)
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            live.update(_screen(name, seen, console.size), refresh=True)
            if not _open(seen):
                break
            time.sleep(LOOK_S)
            seen = watcher.look()
    return _code(seen)


def plain(name: str, seen: Sequence[Seen]) -> Iterator[str]:
    """Every run as a line of aligned text, whole, then the counts and what to do next."""
    lines = [COLUMNS, *map(_cells, seen)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
    for line in lines:
        yield "  ".join(text.ljust(width) for text, width in zip(line, widths)).rstrip()
    yield _total(name, seen)
    if advice := _advice(name, seen):
        yield advice


def shown(seen: Sequence[Seen], room: int) -> tuple[list[Seen], list[Seen]]:
    """The runs that have a line on a screen with `room` lines for them, in the manifest's order; and the others."""
    ranked = sorted(seen, key=lambda run: FIRST.index(run.state))
    chosen = {run.id for run in ranked[:room]}
    return [run for run in seen if run.id in chosen], [run for run in seen if run.id not in chosen]


def _screen(name: str, seen: Sequence[Seen], size: ConsoleDimensions) -> Group:
    advice = _advice(name, seen)
    spare = 5  # the header, the line of those not shown, the total, the advice, and the cursor's own line
    some, others = shown(seen, max(1, size.height - spare))
    table = Table(box=None, pad_edge=False, padding=(0, 2 if size.width >= WIDE else 1, 0, 0), expand=True)
    columns = [column for column in COLUMNS if size.width >= NARROW or column not in ("run", "loss", "tokens/s")]
    for column in columns:
        right = column in ("step", "loss", "tokens/s")
        table.add_column(column, justify="right" if right else "left", no_wrap=True, overflow="ellipsis",
                         ratio=1 if column == "cell" else None)  # fmt: skip
    for run in some:
        texts = dict(zip(COLUMNS, _cells(run)))
        table.add_row(*(Text(texts[column]) for column in columns), style=COLOURS.get(run.state, "dim"))
    parts: list[Table | Text] = [table]
    if others:
        parts.append(_one_line(f"and {_counted(others)}, not shown here", "dim"))
    parts.append(_one_line(_total(name, seen), "bold"))
    parts.append(_one_line(advice or "Ctrl-C ends watching; the runs go on", "dim"))
    return Group(*parts)


def _one_line(text: str, style: str) -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def _cells(run: Seen) -> tuple[str, ...]:
    step = f"{run.step or 0}/{run.steps}" if run.steps is not None else str(run.step or 0)
    loss = "" if run.loss_nats is None else f"{run.loss_nats:.3f}"
    speed = "" if run.tokens_per_s is None else f"{run.tokens_per_s:,.0f}"
    left = run.detail or ("" if run.left_s is None else clock(run.left_s))
    return run.id, run.cell, run.state, step, loss, speed, left


def clock(seconds: float) -> str:
    """h:mm:ss, or m:ss below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _total(name: str, seen: Sequence[Seen]) -> str:
    left = study_left_s(seen)
    return f"{name}: {_counted(seen)}" + (f", about {clock(left)} left" if left is not None else "")


def _counted(seen: Sequence[Seen]) -> str:
    return counts({run.id: Standing(run.state) for run in seen})


def _open(seen: Sequence[Seen]) -> bool:
    return any(run.state in ("running", "queued", "planned") for run in seen)


def _advice(name: str, seen: Sequence[Seen]) -> str:
    """What to type next, if anything."""
    states = {run.state for run in seen}
    if states & {"running", "queued"}:
        return ""
    if states & {"planned", "lost"}:
        return f"nothing of it is running: ablora resume {name} goes on"
    if "failed" in states:
        return f"ablora retry {name} tries the failed again; runs/<id>/failure.json says why they failed"
    return f"next: ablora collect {name}; ablora figures {name}" if states <= {"done", PRUNED} else ""


def _code(seen: Sequence[Seen]) -> int:
    return DONE if all(run.state in ("done", PRUNED) for run in seen) else UNFINISHED

"""The live table: what it reads, what it shows where there is no room, and when it ends."""

import io
import os
import pty
import re
import signal
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console

from ablora.cli import main
from ablora.store import lines
from ablora.store.claims import release, take
from ablora.store.roots import Roots
from ablora.store.run_folder import RunFolder, folder_of
from ablora.study import watch as module
from ablora.study.manifest import Row, StudyFolder
from ablora.study.progress import Seen, Watcher, named, study_left_s
from ablora.study.watch import clock, plain, shown, watch

STEPS = 100


def planned(roots: Roots, number: int) -> list[RunFolder]:
    """A study `s` of runs that differ in method and seed, each with its specification."""
    rows = [Row(f"{i:012x}", {"method": "lora", "train.lr": 1e-3, "seed": i}, "lora", i) for i in range(number)]
    StudyFolder(roots.studies / "s").write(rows, [], {})
    folders = [folder_of(roots, row.id) for row in rows]
    for folder in folders:
        folder.path.mkdir(parents=True)
        folder.spec.write_text(f'{{"id": "{folder.id}", "spec": {{"train": {{"max_steps": {STEPS}}}}}}}')
    return folders


def train(folder: RunFolder, steps: range, step_s: float = 0.5) -> None:
    for step in steps:
        lines.append(folder.metrics, [{"kind": "train", "step": step, "loss_nats": 1 / step, "lr": 1e-3}])
        timed = {"step": step, "wall_s": 3 + step * step_s, "tokens": 900 * step, "tokens_per_s": 1800.0}
        lines.append(folder.timing, [timed])
    lines.append(folder.metrics, [{"kind": "eval", "step": steps[-1], "task": "answer_loss", "metrics": {}}])


def done(folder: RunFolder) -> None:
    folder.result.write_text(f'{{"id": "{folder.id}", "metrics": {{}}}}')


def look(roots: Roots) -> list[Seen]:
    return Watcher(roots, StudyFolder(roots.studies / "s").rows()).look()


def test_a_running_run_shows_step_loss_speed_and_time_left(roots):
    (folder,) = planned(roots, 1)
    assert take(folder) is not None
    train(folder, range(1, 21))
    (run,) = look(roots)
    assert (run.state, run.step, run.steps, run.loss_nats, run.tokens_per_s) == ("running", 20, STEPS, 0.05, 1800.0)
    assert run.left_s == pytest.approx(80 * 0.5)
    assert [line.split() for line in plain("s", [run])][1] == [
        *("000000000000", "lora", "running", "20/100", "0.050", "1,800", "0:40")
    ]


def test_time_left_is_of_this_process_and_not_of_the_one_before(roots):
    """A resumed run's clock begins again, slower."""
    (folder,) = planned(roots, 1)
    assert take(folder) is not None
    train(folder, range(1, 31), step_s=0.1)
    train(folder, range(31, 41), step_s=0.05)  # wall_s falls back from 6.0 to 4.55
    assert look(roots)[0].left_s == pytest.approx(60 * 0.05)


def test_what_files_do_not_say_is_left_open(roots):
    first, second, third = planned(roots, 3)
    first.spec.write_text("{")
    second.metrics.write_text('{"kind": "train", "st')
    third.timing.write_text('{"step": 1, "wall_s": 2.0}\n[1]\n{"st')
    assert all(take(folder) for folder in (first, second, third))
    for run in look(roots):
        assert (run.state, run.step, run.loss_nats, run.left_s) == ("running", None, None, None)


def test_the_studys_time_left_is_open_steps_at_the_finished_pace(roots):
    """One done in 53 s for 100 steps; two run and are at 20 and 50 of 100; one waits: 230 steps, two at a time."""
    a, b, c, _ = planned(roots, 4)
    train(a, range(1, 101))
    done(a)
    for folder, steps in ((b, 20), (c, 50)):
        take(folder)
        train(folder, range(1, steps + 1), step_s=9)
    assert study_left_s(look(roots)) == pytest.approx((80 + 50 + 100) * 0.53 / 2)
    assert study_left_s([run for run in look(roots) if run.state != "running"]) is None


def test_cells_show_what_varies():
    rows = [Row("a", {"method": "lora", "train.lr": 1e-3, "rank": 8, "seed": 0}, "lora", 0),
            Row("b", {"method": "goat", "train.lr": 1e-2, "rank": 8, "seed": 0}, "goat", 1),
            Row("a", {"method": "lora", "train.lr": 1e-2, "rank": 8, "seed": 0}, "lora", 0)]  # fmt: skip
    assert named(rows) == {"a": "lora lr=0.001", "b": "goat lr=0.01"}
    rows = [Row("a", {"x.lr": 1, "y/lr": 1}, "lora", 0), Row("b", {"x.lr": 2, "y/lr": 2}, "lora", 1)]
    assert named(rows)["b"] == "lora x.lr=2 y/lr=2"


def test_without_room_what_needs_eyes_comes_first_and_the_rest_is_counted():
    states = ["done", "planned", "failed", "running", "lost", "done"]
    seen = [Seen(str(i), "", state, "") for i, state in enumerate(states)]  # type: ignore[arg-type]
    some, others = shown(seen, 3)
    assert [run.state for run in some] == ["failed", "running", "lost"]
    text = io.StringIO()
    console = Console(file=text, width=80, height=8, force_terminal=True, no_color=True)
    console.print(module._screen("s", seen, console.size))
    assert "and 3 runs (2 done, 1 planned), not shown here" in text.getvalue()
    assert len(others) == 3


def test_no_line_is_wider_or_higher_than_the_screen(roots):
    planned(roots, 40)
    for width, height in ((80, 24), (40, 10), (120, 30)):
        text = io.StringIO()
        console = Console(file=text, width=width, height=height, force_terminal=True, no_color=True)
        console.print(module._screen("s", look(roots), console.size))
        said = re.sub(r"\x1b\[[0-9;]*m", "", text.getvalue()).splitlines()
        assert len(said) < height
        assert max(map(len, said)) <= width


def test_it_ends_when_nothing_runs_or_waits(roots, monkeypatch):
    first, second = planned(roots, 2)
    claim = take(first)
    looks = []

    def pause(_: float) -> None:
        looks.append(1)
        done(first)
        if len(looks) == 2:
            second.failure.write_text('{"class": "diverged", "message": "loss is nan"}')

    assert claim is not None
    monkeypatch.setattr(module.time, "sleep", pause)
    text = io.StringIO()
    assert watch(roots, "s", Console(file=text, width=80, height=24, force_terminal=True, no_color=True)) == 3
    assert len(looks) == 2
    last = text.getvalue().rpartition("run ")[2]
    assert "s: 2 runs (1 done, 1 failed)" in last
    assert "ablora retry s" in last
    assert "diverged" in last


def test_without_a_terminal_it_is_one_whole_snapshot(roots, capsys):
    folders = planned(roots, 60)
    assert main(["watch", "s"]) == 3
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1 + 60 + 2
    assert said[-1] == "nothing of it is running: ablora resume s goes on"
    for folder in folders:
        done(folder)
    assert main(["watch", "s"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "next: ablora collect s; ablora figures s"


def test_ctrl_c_in_a_terminal_ends_with_130_and_touches_nothing(roots):
    (folder,) = planned(roots, 1)
    claim = take(folder)
    assert claim is not None
    before = {path: path.stat().st_mtime_ns for path in Path.cwd().rglob("*")}
    parent, child = pty.openpty()
    command = [sys.executable, "-m", "ablora.cli", "watch", "s"]
    environment = {**os.environ, "TERM": "xterm", "PYTHONDONTWRITEBYTECODE": "1"}
    # A test run in the background has SIGINT ignored, and its children inherit that.
    heeding = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, stdin=child, stdout=child, stderr=child, env=environment, preexec_fn=heeding)
    os.close(child)
    said = b""
    while b"the runs go on" not in said:
        said += os.read(parent, 4096)
    process.send_signal(signal.SIGINT)
    with suppress(OSError):  # the end of the terminal; unread, its buffer would fill and stop the process
        while part := os.read(parent, 4096):
            said += part
    os.close(parent)
    assert process.wait(timeout=60) == 130
    assert b"\x1b[?25h" in said, "the cursor is shown again"
    assert {path: path.stat().st_mtime_ns for path in Path.cwd().rglob("*")} == before
    release(claim)


def test_a_further_look_reads_nothing_of_runs_that_are_done(roots):
    folders = planned(roots, 20)
    for i, folder in enumerate(folders):
        folder.timing.write_text('{"step": 1, "wall_s": 1.0}\n')
        folder.metrics.write_text('{"kind": "train", "step": 1, "loss_nats": 1.0}\n')
        if i < 15:
            done(folder)
    watcher = Watcher(roots, StudyFolder(roots.studies / "s").rows())
    first = watcher.look()
    for folder in folders[:15]:
        folder.metrics.write_text("no longer read\n")
    assert watcher.look() == first
    assert len(first) == 20


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3661, "1:01:01")])
def test_clock(seconds, text):
    assert clock(seconds) == text

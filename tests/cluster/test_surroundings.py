"""What goes wrong around a run on a real SLURM: its numbers, the disk below it, a clock; the campaign has more."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import fake_execute
from ablora.cli import main
from ablora.dispatch import submissions
from slurm_lab import Lab, until

UNTIL = fake_execute.UNTIL


def test_a_run_that_diverges_harms_no_other_and_is_not_tried_again_by_itself(lab: Lab):
    seeds = f"seed={fake_execute.DIVERGES},0"
    assert lab.run(seeds) == 3
    found = lab.standing(fake_execute.DIVERGES)
    assert (found.state, found.detail, lab.standing(0).state) == ("failed", "diverged", "done")
    assert lab.run(seeds) == 3
    assert lab.starts(fake_execute.DIVERGES) == 1
    assert main(["retry", "s", "--only", "diverged"]) == 0, "it goes wrong at its second step, which is behind it"
    assert [lab.starts(seed) for seed in (fake_execute.DIVERGES, 0)] == [2, 1]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """The runs' own disk, of 8 MiB."""
    runs = tmp_path / "runs"
    runs.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", runs], check=True)
    yield runs
    subprocess.run(["umount", "--lazy", runs], check=True)


def test_a_full_disk_loses_no_step(small_disk: Path, lab: Lab):
    """A run that finds no room fails as disk_full; where that cannot be written either, it is lost or, if it could give
    up its claim, planned."""
    assert lab.run(f"seed={UNTIL}", "cluster.wait=false") == 0
    until(lambda: lab.trains(UNTIL))
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file:
        with suppress(OSError):
            while file.write(bytes(1 << 12)):
                pass
        until(lambda: lab.standing(UNTIL).state not in ("running", "queued"))
    filler.unlink()
    before = lab.steps(UNTIL)
    found = lab.standing(UNTIL)
    assert found.state in ("failed", "lost", "planned"), found
    lab.go()
    again = ["retry", "s", "--only", "disk_full"] if found.state == "failed" else None
    assert (main(again) if again else lab.run(f"seed={UNTIL}")) == 0
    assert lab.folder(UNTIL).result.exists()
    assert lab.steps(UNTIL) == list(range(1, len(before) + 2))
    assert lab.starts(UNTIL) == 2


@pytest.mark.parametrize("off_s", [600, -600])
def test_a_sender_whose_clock_is_ten_minutes_off_sends_once(lab: Lab, monkeypatch, off_s):
    """And so does one whose clock is right, after it."""
    real = time.time
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: real() + off_s)
        assert lab.run(f"seed={UNTIL}", "cluster.wait=false") == 0
    (record,) = submissions.read(lab.study)
    assert abs(record.made_s - real()) > 300
    until(lambda: lab.trains(UNTIL))
    assert lab.run(f"seed={UNTIL}", "cluster.wait=false") == 0
    assert lab.standing(UNTIL).state == "running"
    lab.go()
    assert lab.run(f"seed={UNTIL}") == 0
    assert (lab.starts(UNTIL), len(submissions.read(lab.study))) == (1, 1)

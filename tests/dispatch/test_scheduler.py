"""What SLURM prints, read as 22.05 printed it; no SLURM is needed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ablora.dispatch import scheduler
from ablora.dispatch.scheduler import NoAnswer, Task

SACCT = """\
29_[0-3,6%4]|CANCELLED by 0|0:0
29_0|COMPLETED|0:0
29_0.batch|COMPLETED|0:0
29_1|FAILED|1:0
29_1.batch|FAILED|1:0
29_1.0|OUT_OF_MEMORY|0:125
29_2|TIMEOUT|0:0
31|FAILED|137:0
31.0|FAILED|0:9
"""
SQUEUE = "3|1|PENDING|2|JobArrayTaskLimit|abl-x|\n4|N/A|RUNNING|0|None|other|\n"


def test_a_tasks_own_row_wins_over_the_bracket_and_its_steps_memory_over_its_failure(monkeypatch):
    monkeypatch.setattr(scheduler, "ask", lambda *_: SACCT)
    assert scheduler.ended(["29", "31"]) == {
        "29_0": "COMPLETED",
        "29_1": "OUT_OF_MEMORY",
        "29_2": "TIMEOUT",
        "29_3": "CANCELLED",
        "29_6": "CANCELLED",
        "31": "FAILED 137:0",
    }


def test_the_queue(monkeypatch):
    monkeypatch.setattr(scheduler, "ask", lambda *_: SQUEUE)
    assert scheduler.queued(["me"]) == {
        "3_1": Task("PENDING", "JobArrayTaskLimit", 2, "abl-x"),
        "4": Task("RUNNING", "", 0, "other"),
    }


@given(days=st.integers(0, 9), hours=st.integers(0, 23), minutes=st.integers(0, 59), seconds=st.integers(0, 59))
def test_times(days, hours, minutes, seconds):
    whole = (days * 24 + hours) * 60 + minutes + (seconds > 0)
    assert scheduler.minutes(f"{days}-{hours:02}:{minutes:02}:{seconds:02}") == whole
    assert scheduler.minutes(f"{hours + 24 * days}:{minutes:02}:{seconds:02}") == whole
    assert scheduler.minutes(f"{minutes}:{seconds:02}") == minutes + (seconds > 0)
    assert scheduler.minutes(f"{days}-{hours}") == (days * 24 + hours) * 60
    assert scheduler.minutes(minutes) == minutes


def test_a_time_without_an_end_and_what_is_none():
    assert scheduler.minutes("infinite") is None
    for text in ("1:2:3:4", "abc", "", "-5", "1.5"):
        with pytest.raises(ValueError):
            scheduler.minutes(text)


def test_a_command_that_is_not_there_or_fails_is_no_answer():
    with pytest.raises(NoAnswer, match="no sbotch here"):
        scheduler.ask("sbotch")
    with pytest.raises(NoAnswer, match="false: 1"):
        scheduler.ask("false")

"""A job fills the caches before the runs that need them; a failed one leaves what the same command mends."""

from pathlib import Path

import pytest

from ablora.cli import main
from ablora.dispatch import slurm, submissions
from slurm_lab import Lab, said, until

FIRST = ["cluster.prepare=true", "eval.tasks.generation=null", "eval.tasks.forgetting=null"]


def preparations(lab: Lab) -> list[submissions.Submission]:
    return [record for record in submissions.read(lab.study) if record.prepares]


def test_runs_wait_for_the_caches_and_the_next_study_finds_them(lab: Lab, capsys):
    assert lab.run("method=pissa,lora", "seed=0,1", "cluster.wait=false", *FIRST) == 0
    (first,) = preparations(lab)
    assert f"job {first.job} fills the caches first" in capsys.readouterr().err
    arrays = [record for record in submissions.read(lab.study) if record.after]
    assert [record.after for record in arrays] == [(first.name,)]
    assert f"afterok:{first.job}" in said("scontrol", "show", "job", f"{arrays[0].job}_0")
    assert lab.standing(0).state == "queued"
    assert lab.run("method=pissa,lora", "seed=0,1", *FIRST) == 0
    assert submissions.is_prepared(lab.study, first.name)
    assert len(list((lab.roots.cache / "spectra").glob("*.safetensors"))) == 28
    assert len(submissions.read(lab.study)) == 2, "watched, and not sent again"
    assert lab.run("method=pissa,lora", "seed=range(3)", *FIRST) == 0
    assert len(preparations(lab)) == 1, "other seeds need nothing more"
    assert [lab.starts(seed) for seed in (0, 1, 2)] == [1, 1, 1]


def test_a_failed_preparation_is_told_and_the_same_command_mends_it(lab: Lab, capsys):
    lab.roots.cache.mkdir()
    (lab.roots.cache / "tokens").write_text("in the way")
    assert lab.run("seed=0,1", "cluster.wait=false", *FIRST) == 0
    (first,) = preparations(lab)
    until(lambda: lab.standing(0).state == "planned")
    told = f"its preparation, job {first.job}, FAILED 1:0 (jobs/{first.job}_0_log.err)"
    assert lab.standing(0).detail == told
    assert "FileExistsError" in (lab.study / "jobs" / f"{first.job}_0_log.err").read_text()
    capsys.readouterr()
    assert main(["status", "s"]) == 0
    assert capsys.readouterr().out.count(told) == 2
    assert lab.run("seed=0,1", *FIRST) == 3, "it fails again"
    assert f"not finished: its preparation, job {preparations(lab)[-1].job}, FAILED 1:0" in capsys.readouterr().err
    assert lab.standing(1).state == "planned"
    until(lambda: not lab.queued())
    (lab.roots.cache / "tokens").unlink()
    assert lab.run("seed=0,1", *FIRST) == 0
    assert [lab.starts(seed) for seed in (0, 1)] == [1, 1]
    assert len(preparations(lab)) == 3


class Killed(BaseException):
    pass


@pytest.mark.parametrize("after", [False, True])
def test_a_controller_that_dies_between_preparation_and_array(lab: Lab, monkeypatch, after):
    """The preparation that is there is waited for, and no second one is sent beside it."""
    real, calls = slurm.Slurm._submit, []

    def dies(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            return real(*arguments)
        if after:
            real(*arguments)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(slurm.Slurm, "_submit", dies)
        with pytest.raises(Killed):
            lab.run("seed=0", "cluster.wait=false", *FIRST)
    assert [(bool(r.prepares), r.phase) for r in submissions.read(lab.study)] == [(True, "held"), (False, "writing")]
    assert lab.run("seed=0", *FIRST) == 0
    assert lab.starts(0) == 1
    assert len(preparations(lab)) == 1
    until(lambda: not lab.queued())


def test_a_cancelled_preparation_is_no_cancelled_run(lab: Lab):
    later = "cluster.options=['begin=now+1hour']"
    assert lab.run("seed=0", "cluster.wait=false", later, *FIRST) == 0
    said("scancel", str(preparations(lab)[0].job))
    until(lambda: lab.standing(0).state == "planned")
    assert lab.run("seed=0", *FIRST) == 0
    assert lab.starts(0) == 1
    assert not list(Path(lab.folder(0).path).glob("failure*"))

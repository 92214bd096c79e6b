"""From a command to results, on a real SLURM: sent once, split, detached, refused, frozen."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ablora.dispatch import submissions
from slurm_lab import PATIENCE_S, TESTS, Lab, said, until

REPOSITORY = TESTS.parent


def test_detached_then_watched_and_never_sent_twice(lab: Lab, capsys):
    assert lab.run("seed=0,1", "cluster.wait=false") == 0
    heard = capsys.readouterr()
    assert "sent 2 runs to SLURM" in heard.err
    assert "SLURM has 2 of 2 runs: 2 runs (2 queued)" in heard.out
    assert {lab.standing(seed).state for seed in (0, 1)} <= {"queued", "running", "done"}
    assert lab.run("seed=0,1") == 0
    assert [lab.starts(seed) for seed in (0, 1)] == [1, 1]
    assert len(submissions.read(lab.study)) == 1
    assert "all 2 runs are done" in capsys.readouterr().out


def test_an_array_is_split_where_the_site_has_shorter_ones(lab: Lab):
    later = "cluster.options=['begin=now+1hour']"
    assert lab.run("seed=range(10)", "cluster.wait=false", later, "cluster.array_parallelism=3") == 0
    assert [len(record.tasks) for record in submissions.read(lab.study)] == [8, 2]
    assert len(lab.queued()) == 10
    assert {task.state for task in lab.queued().values()} == {"PENDING"}
    assert lab.standing(9).state == "queued"
    assert lab.run("seed=range(12)", "cluster.wait=false", later, "cluster.packs_per_task=2") == 0
    assert [len(record.tasks) for record in submissions.read(lab.study)] == [8, 2, 1], "two runs more, in one task"


@pytest.mark.parametrize(
    ("wanted", "legal"),
    [
        ("cluster.partition=nope", "cluster.partition='nope' is not legal: a partition of this site: low, high"),
        ("cluster.gpus=a100:1", "for the partition low, one of its GPUs (without a type)"),
        ("cluster.time=61", "cluster.time=61 is not legal: at most 1:00:00, the limit of the partition low"),
        ("cluster.memory=900G", "what sbatch takes; it says: Requested node configuration is not available"),
        ("cluster.constraint=big", "what sbatch takes; it says: Invalid feature specification"),
    ],
)
def test_what_the_site_would_refuse_is_refused_before_anything_is_written(lab: Lab, capsys, wanted, legal):
    assert lab.run("seed=0", wanted) == 2
    assert legal in capsys.readouterr().err
    assert not lab.study.exists()
    assert not lab.roots.runs.exists()


def test_hydras_own_launcher_sends_each_run_as_a_job(lab: Lab):
    """The official plug-in, unchanged: `hydra/launcher=submitit_slurm`."""
    sent = ["hydra/launcher=submitit_slurm", "hydra.launcher.partition=low", "hydra.launcher.mem_per_cpu=900M",
            "hydra.launcher.timeout_min=30"]  # fmt: skip
    tiny = ["train=quick", "train.max_steps=2", "train.batch_size=2", "tracker=off", "cluster.threads=1",
            "eval.tasks.generation=null", "eval.tasks.validation_answer_loss=null", "eval.at_start=false",
            "eval.tasks.forgetting=null", "eval.tasks.answer_loss.max_items=2"]  # fmt: skip
    command = [sys.executable, "-m", "ablora.app", "-m", *sent, "seed=0,1", *tiny]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    assert len(list(lab.roots.runs.glob("*/result.json"))) == 2
    records = [json.loads(path.read_text()) for path in lab.roots.runs.glob("*/env.json")]
    assert all(start["slurm_job"] for record in records for start in record["starts"])


def test_without_slurm_it_says_so(lab: Lab, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert lab.run("seed=0") == 2
    assert "a machine from which SLURM can be asked, such as a login node (no sinfo here)" in capsys.readouterr().err
    assert not lab.study.exists()


def test_queued_jobs_run_the_code_that_they_were_sent_with(lab: Lab, tmp_path: Path):
    copy = tmp_path / "checkout"
    for name in ("src", "conf", "sweeps", "analysis"):
        shutil.copytree(REPOSITORY / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(["git", "init", "--quiet"], cwd=copy, check=True)
    program = "import sys; from ablora.cli import main; sys.exit(main(sys.argv[1:]))"
    later = ["seed=0", "train.max_steps=2", "eval.tasks.generation=null", "eval.tasks.forgetting=null",
             "cluster.wait=false", "cluster.options=['begin=now+1hour']"]  # fmt: skip
    controller = lab.start(*later, program=program, path=copy / "src")
    assert controller.wait(timeout=PATIENCE_S) == 0, controller.stderr.read()
    trainer = copy / "src" / "ablora" / "train" / "loop.py"
    trainer.write_text("raise RuntimeError('edited while the job waited')\n")
    said("scontrol", "update", f"JobId={lab.task(0)}", "StartTime=now")
    until(lambda: lab.folder(0).result.exists() or lab.folder(0).failure.exists() or not lab.queued())
    assert lab.folder(0).result.exists()
    code = submissions.read(lab.study)[0].code
    assert Path(code).is_relative_to(lab.study / "code")
    broken = [sys.executable, "-c", "import ablora.train.loop"]
    assert subprocess.run(broken, env={"PYTHONPATH": str(copy / "src")}, capture_output=True).returncode != 0

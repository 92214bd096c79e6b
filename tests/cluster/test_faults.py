"""Faults on a real SLURM: no finished run is lost, none is executed twice, and the states have SLURM's words."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

import fake_execute
import slurm_lab
import wandb_log
from ablora.cli import main
from ablora.dispatch import slurm, submissions
from ablora.store import lines
from ablora.store.run_folder import RunFolder
from slurm_lab import PATIENCE_S, Lab, said, until

UP = Path(__file__).parent / "up.sh"
UNTIL = fake_execute.UNTIL


def whole(lab: Lab, seed: int = UNTIL) -> bool:
    """Whether a run is done, and every step of it is recorded once, in order."""
    steps = lab.steps(seed)
    return lab.folder(seed).result.exists() and steps == list(range(1, len(steps) + 1))


def test_a_killed_worker_a_raising_run_and_a_good_one(lab: Lab, capsys):
    seeds = f"seed={fake_execute.DIES},{fake_execute.BUG},0"
    assert lab.run(seeds) == 3
    assert (lab.standing(0).state, lab.standing(fake_execute.BUG).detail) == ("done", "bug")
    lost = lab.standing(fake_execute.DIES)
    assert lost.state == "lost"
    assert lost.detail.startswith("step 2, task ")
    assert "FAILED" in lost.detail
    assert lab.run(seeds) == 3
    assert whole(lab, fake_execute.DIES)
    assert [lab.starts(s) for s in (fake_execute.DIES, fake_execute.BUG, 0)] == [2, 1, 1]
    assert "1 runs (1 failed)" in capsys.readouterr().err


class Killed(BaseException):
    pass


def test_a_controller_killed_at_every_step_of_sending(lab: Lab, monkeypatch):
    """At each point the next command finds what is there; in the end the run has been executed once."""

    def kill_at(owner: object, name: str, after: bool) -> None:
        real = getattr(owner, name)

        def dies(*args, **kwargs):
            if after:
                real(*args, **kwargs)
            raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, dies)
            with pytest.raises(Killed):
                lab.run("seed=0", "cluster.wait=false")

    kill_at(slurm.Slurm, "_submit", after=False)
    assert [r.phase for r in submissions.read(lab.study)] == ["writing"]
    kill_at(slurm.Slurm, "_submit", after=True)
    assert [r.phase for r in submissions.read(lab.study)] == ["abandoned", "writing"]
    assert [task.reason for task in lab.queued().values()] == ["JobHeldUser"]
    kill_at(submissions, "release", after=False)
    assert [r.phase for r in submissions.read(lab.study)] == ["abandoned", "abandoned", "held"]
    assert lab.run("seed=0") == 0
    assert lab.starts(0) == 1
    assert len(submissions.read(lab.study)) == 3, "the held array was released and none was sent beside it"

    def release_and_die(study, record):
        said("scontrol", "release", str(record.job))
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(submissions, "release", release_and_die)
        with pytest.raises(Killed):
            lab.run("seed=0,1", "cluster.wait=false")
    assert [r.phase for r in submissions.read(lab.study)][-1] == "held"
    assert lab.run("seed=0,1") == 0
    assert [lab.starts(seed) for seed in (0, 1)] == [1, 1]
    until(lambda: not lab.queued())


def test_a_controller_killed_while_it_watches(lab: Lab):
    controller = lab.start(f"seed={UNTIL}")
    until(lambda: lab.trains(UNTIL))
    os.killpg(controller.pid, signal.SIGKILL)
    controller.wait()
    assert lab.standing(UNTIL).state == "running"
    lab.go()
    assert lab.run(f"seed={UNTIL}") == 0
    assert lab.starts(UNTIL) == 1
    assert whole(lab)


@pytest.mark.slow
def test_ctrl_c_ends_the_watching_and_nothing_else(lab: Lab):
    controller = lab.start(f"seed={UNTIL}")
    until(lambda: lab.trains(UNTIL))
    os.kill(controller.pid, signal.SIGINT)
    _, heard = controller.communicate(timeout=PATIENCE_S)
    assert controller.returncode == 130, heard
    assert "the jobs go on; ablora watch s shows them" in heard
    assert "ablora cancel s ends them" in heard
    before = len(lab.steps(UNTIL))
    until(lambda: len(lab.steps(UNTIL)) > before + 3)
    lab.go()
    until(lambda: whole(lab))


def test_two_controllers_at_once_send_each_run_once(lab: Lab):
    both = [lab.start("seed=0,1") for _ in range(2)]
    for controller in both:
        _, heard = controller.communicate(timeout=PATIENCE_S)
        assert controller.returncode == 0, heard
    assert [lab.starts(seed) for seed in (0, 1)] == [1, 1]
    assert len(submissions.read(lab.study)) == 1


def test_a_requeued_task_goes_on_where_it_was(lab: Lab):
    assert lab.run(f"seed={UNTIL}", "cluster.wait=false") == 0
    until(lambda: lab.trains(UNTIL))
    task = lab.task(UNTIL)
    said("scontrol", "requeue", task)
    until(lambda: lab.standing(UNTIL).state == "queued")
    assert "requeued 1 times" in lab.standing(UNTIL).detail
    reached = len(lab.steps(UNTIL))
    assert lab.run(f"seed={UNTIL}", "cluster.wait=false") == 0
    lab.start_now(task)
    until(lambda: len(lab.steps(UNTIL)) > reached + 3)
    assert lab.standing(UNTIL).state == "running"
    lab.go()
    assert lab.run(f"seed={UNTIL}") == 0
    assert (lab.starts(UNTIL), len(submissions.read(lab.study))) == (2, 1)
    assert whole(lab)


def test_preemption_writes_a_checkpoint_and_goes_on_afterwards(lab: Lab):
    here = ["cluster.cpus=4", "cluster.threads=1", "cluster.options=['nodelist=node1']"]
    assert lab.run(f"seed={UNTIL}", "cluster.wait=false", *here) == 0
    until(lambda: lab.trains(UNTIL))
    other = said("sbatch", "--parsable", "--partition=high", "--nodelist=node1", "--cpus-per-task=4", "--mem=50",
                 "--output=/dev/null", "--wrap=sleep 3").strip()  # fmt: skip
    until(lambda: lab.standing(UNTIL).state == "queued")
    events = [event["state"] for event in lines.read(lab.folder(UNTIL).events)]
    assert (lab.folder(UNTIL).path / "claim.0.released").exists(), events
    lab.start_now(lab.task(UNTIL))
    until(lambda: lab.starts(UNTIL) == 2)
    lab.go()
    assert lab.run(f"seed={UNTIL}") == 0
    assert whole(lab)
    assert "COMPLETED" in said("sacct", "-n", "-X", "-o", "State", "-j", other)


def test_a_task_that_is_told_before_python_can_hear_it_goes_on(lab: Lab):
    """As one is that is preempted at once: without more, SIGUSR2 would kill it in the seconds before."""
    assert lab.run(f"seed={UNTIL}", "cluster.wait=false") == 0
    task = lab.task(UNTIL)
    until(lambda: slurm_lab.deaf_to(signal.SIGUSR2, task))
    said("scancel", "--signal=USR2", task)
    assert lab.starts(UNTIL) == 0
    until(lambda: "requeued 1 times" in lab.standing(UNTIL).detail)
    lab.start_now(task)
    until(lambda: lab.trains(UNTIL))
    lab.go()
    assert lab.run(f"seed={UNTIL}") == 0
    assert (lab.starts(UNTIL), len(submissions.read(lab.study))) == (1, 1)
    assert whole(lab)


def test_the_end_of_its_time_is_a_checkpoint_and_a_requeue(lab: Lab):
    assert lab.run(f"seed={UNTIL}", "cluster.wait=false", "cluster.time=50", "cluster.signal_lead_s=40") == 0
    until(lambda: lab.trains(UNTIL))
    task = lab.task(UNTIL)
    lab.end_time(task)
    until(lambda: lab.standing(UNTIL).state == "queued")
    assert (lab.folder(UNTIL).path / "claim.0.released").exists()
    said("scontrol", "update", f"JobId={task}", "TimeLimit=50")
    lab.start_now(task)
    until(lambda: lab.starts(UNTIL) == 2)
    lab.go()
    assert lab.run(f"seed={UNTIL}") == 0
    assert whole(lab)
    assert len(submissions.read(lab.study)) == 1


def test_scancel_of_a_running_and_of_a_waiting_task(lab: Lab, capsys):
    seeds = f"seed={UNTIL},0"
    assert lab.run(seeds, "cluster.wait=false", "cluster.array_parallelism=1") == 0
    until(lambda: lab.trains(UNTIL))
    said("scancel", lab.task(0))
    said("scancel", lab.task(UNTIL))
    until(lambda: not lab.queued())
    until(lambda: (lab.standing(UNTIL).detail, lab.standing(0).detail) == ("cancelled", "cancelled"))
    assert lab.run(seeds) == 3, "cancelled is not sent again by the same command"
    assert len(submissions.read(lab.study)) == 1
    assert lab.folder(0).read_failure()["class"] == "cancelled"
    lab.go()
    assert main(["retry", "s", "--only", "cancelled"]) == 0
    assert (lab.starts(UNTIL), lab.starts(0)) == (2, 1)
    assert whole(lab)


def test_more_memory_than_asked_for(lab: Lab):
    seed = f"seed={fake_execute.HUNGRY}"
    assert lab.run(seed) == 3
    assert (lab.standing(fake_execute.HUNGRY).state, lab.standing(fake_execute.HUNGRY).detail) == (
        "failed",
        "out_of_memory",
    )
    assert lab.run(seed) == 3
    assert lab.starts(fake_execute.HUNGRY) == 1


def test_slurmctld_killed_and_started_again(lab: Lab):
    """The next command comes while it refuses every job, as no node has answered yet; both have jobs that it knows, so
    that none of them is `unknown`."""
    home = Path(os.environ["SLURM_CONF"]).parent
    assert lab.run(f"seed={UNTIL}", "cluster.wait=false") == 0
    until(lambda: lab.trains(UNTIL))
    asked = ["sbatch", "--parsable", "--mem=50", "--output=/dev/null", "--wrap=sleep 600"]
    other = [said(*asked, f"--nodelist={node}").strip() for node in ("node1", "node2")]
    until(lambda: all(said("squeue", "--noheader", "--format=%t", f"--jobs={job}").strip() == "R" for job in other))
    time.sleep(6)  # it writes its state down within five seconds
    os.kill(int((home / "slurmctld.pid").read_text()), signal.SIGKILL)
    try:
        assert lab.standing(UNTIL).state in ("queued", "running"), "as it was: who cannot be asked is not dead"
    finally:
        said("slurmctld")
    until(lambda: subprocess.run(["scontrol", "ping"], capture_output=True).returncode == 0)
    seeds = f"seed={UNTIL},0"
    assert lab.run(seeds, "cluster.wait=false") == 0
    said("scancel", *other)
    lab.go()
    assert lab.run(seeds) == 0
    assert (lab.starts(UNTIL), lab.starts(0), len(submissions.read(lab.study))) == (1, 1, 2)
    assert whole(lab)


def test_a_lost_node(lab: Lab):
    """Its process runs on for a while, and must not disturb the one that took the run over."""
    assert lab.run(f"seed={UNTIL}", "cluster.wait=false", "cluster.options=['nodelist=node2']") == 0
    until(lambda: lab.trains(UNTIL))
    task, first = lab.task(UNTIL), lab.pid(UNTIL)
    home = Path(os.environ["SLURM_CONF"]).parent
    os.kill(int((home / "slurmd-node2.pid").read_text()), signal.SIGKILL)
    try:
        until(lambda: lab.standing(UNTIL).state == "queued")
        assert Path(f"/proc/{first}").exists(), "the process on the lost node runs on"
        said("scontrol", "update", f"JobId={task}", "ReqNodeList=node1")
        lab.start_now(task)
        until(lambda: lab.starts(UNTIL) == 2)
        until(lambda: not Path(f"/proc/{first}").exists())
        lab.go()
        assert lab.run(f"seed={UNTIL}") == 0
    finally:
        subprocess.run([str(UP)], check=True, capture_output=True)
    assert whole(lab)
    assert lab.pid(UNTIL) != first


@pytest.mark.slow
def test_a_real_run_that_is_requeued_has_the_bits_of_an_undisturbed_one(lab: Lab, tmp_path: Path, monkeypatch):
    short = [
        "seed=0",
        "train=default",
        "train.max_steps=24",
        "train.batch_size=8",
        "train.checkpoint_every=4",
        "eval.every=0",
        "eval.tasks.generation=null",
        "eval.tasks.forgetting=null",
        "eval.at_start=false",
    ]
    monkeypatch.setenv("WANDB_MODE", "offline")
    program = "import sys; from ablora.cli import main; sys.exit(main(sys.argv[1:]))"
    assert lab.start(*short, "tracker=wandb", "cluster.wait=false", program=program).wait(timeout=PATIENCE_S) == 0
    until(lambda: len(lab.steps(0)) >= 6)
    said("scontrol", "requeue", lab.task(0))
    lab.start_now(lab.task(0))
    until(lambda: lab.folder(0).result.exists())
    events = [(event["state"], event.get("step")) for event in lines.read(lab.folder(0).events)]
    assert [state for state, _ in events] == ["running", "preempted", "running", "done"]
    assert events[1][1] == events[2][1], "it went on at the step at which it was stopped"
    disturbed = lab.folder(0)
    monkeypatch.setenv("ABLORA_RUNS", str(tmp_path / "calm" / "runs"))
    assert main(["run", "-m", *(a for a in slurm_lab.STUDY if "cluster" not in a), *short]) == 0
    calm = RunFolder(tmp_path / "calm" / "runs" / disturbed.id)
    for file in ("adapter/ablora_adapter.safetensors", "result.json", "metrics.jsonl", "evals/answer_loss.jsonl"):
        assert (disturbed.path / file).read_bytes() == (calm.path / file).read_bytes(), file
    require_one_run_at_wandb(disturbed, steps=24)


def require_one_run_at_wandb(folder: RunFolder, steps: int) -> None:
    """One log under the run's own id, whatever its lives, with each step once."""
    (path,) = (folder.path / "wandb").glob("offline-run-*/*.wandb")
    log = wandb_log.read(path)
    assert {run.run_id for run in log.runs} == {folder.id}
    assert [row["step"] for row in log.rows if "train/loss_nats" in row] == list(range(1, steps + 1))
    assert log.exit_codes == [0]

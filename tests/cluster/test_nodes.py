"""Sites that give whole nodes, on a real SLURM: a task has a node with two GPUs, and a process for each."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from ablora.store import claims
from fake_execute import UNTILS
from slurm_lab import PATIENCE_S, Lab, said, until

NODE = ["cluster.gpus=2", "cluster.processes=2", "cluster.memory=1900M"]
SEEDS = f"seed={','.join(map(str, UNTILS))}"


def owner(lab: Lab, seed: int) -> dict:
    folder = lab.folder(seed)
    return claims.owner_of(folder, claims.latest(folder))


def whole(lab: Lab, seed: int) -> bool:
    steps = lab.steps(seed)
    return lab.folder(seed).result.exists() and steps == list(range(1, len(steps) + 1))


def test_every_process_has_its_gpu_and_its_runs_and_hears_of_the_end(lab: Lab, capsys):
    """One process is killed, which leaves the other of its node at work; at the end of its time that one writes its
    checkpoint, and the requeued task takes up both. The other node hears of nothing."""
    assert lab.run(SEEDS, *NODE, "cluster.wait=false") == 0, capsys.readouterr().err
    (sent,) = lab.records()
    assert [len(task) for task in sent.tasks] == [2, 2]
    until(lambda: all(lab.trains(seed) for seed in UNTILS))
    owners = {seed: owner(lab, seed) for seed in UNTILS}
    first = [seed for seed in UNTILS if lab.task(seed) == sent.task(0)]
    second = [seed for seed in UNTILS if seed not in first]
    assert all(owners[seed]["slurm"] == lab.task(seed) for seed in UNTILS)
    assert {owners[seed]["host"] for seed in first}.isdisjoint(owners[seed]["host"] for seed in second)
    assert len({one["pid"] for one in owners.values()}) == 4
    for pair in (first, second):
        assert sorted((lab.folder(seed).path / "gpus.txt").read_text() for seed in pair) == ["0", "1"]

    dies, stays = first
    os.kill(lab.pid(dies), signal.SIGKILL)
    reached = len(lab.steps(stays))
    until(lambda: len(lab.steps(stays)) > reached + 20)
    assert lab.starts(dies) == 1
    said("scancel", "--signal=USR2", str(sent.task(0)))
    until(lambda: {lab.standing(seed).state for seed in first} == {"queued"})
    assert (lab.folder(stays).path / "claim.0.released").exists()
    assert {lab.standing(seed).state for seed in second} == {"running"}
    lab.start_now(str(sent.task(0)))
    until(lambda: [lab.starts(seed) for seed in first] == [2, 2])
    lab.go()
    assert lab.run(SEEDS, *NODE) == 0, capsys.readouterr().err
    assert all(whole(lab, seed) for seed in UNTILS)
    assert [lab.starts(seed) for seed in (*first, *second)] == [2, 2, 1, 1]
    assert len(lab.records()) == 1, "nothing was sent again"


def test_a_killed_process_is_lost_when_its_node_is_through(lab: Lab, capsys):
    two = f"seed={UNTILS[0]},{UNTILS[1]}"
    assert lab.run(two, *NODE, "cluster.wait=false") == 0
    until(lambda: all(lab.trains(seed) for seed in UNTILS[:2]))
    os.kill(lab.pid(UNTILS[0]), signal.SIGKILL)
    lab.go()
    until(lambda: not lab.queued())
    assert whole(lab, UNTILS[1]), "the other one was let finish"
    until(lambda: lab.standing(UNTILS[0]).state == "lost")
    assert lab.run(two, *NODE) == 0, capsys.readouterr().err
    assert all(whole(lab, seed) for seed in UNTILS[:2])
    assert [lab.starts(seed) for seed in UNTILS[:2]] == [2, 1]


def test_real_runs_of_a_node_read_one_copy_of_the_base(lab: Lab, tmp_path: Path):
    program = "import sys; from ablora.cli import main; sys.exit(main(sys.argv[1:]))"
    short = ["seed=0,1", "train.max_steps=2", "eval.tasks.generation=null", "eval.tasks.forgetting=null"]
    disk = tmp_path / "disk"
    controller = lab.start(*short, *NODE, f"cluster.stage={disk}", program=program)
    _, heard = controller.communicate(timeout=PATIENCE_S)
    assert controller.returncode == 0, heard + lab.told()
    (copy,) = (path for path in (disk / f"ablora-{os.getuid()}").iterdir() if path.is_dir())
    assert {"config.json", "model.safetensors", "stage.json"} <= {path.name for path in copy.iterdir()}
    logs = list((lab.study / "jobs").glob("*_log.err"))
    assert {path.name.rpartition("_")[0][-2:] for path in logs} == {"_0", "_1"}, "each process has its own"
    assert not any("is read where it is" in path.read_text() for path in logs)
    assert all(lab.folder(seed).result.exists() for seed in (0, 1))
    away = {**os.environ, "ABLORA_RUNS": str(tmp_path / "here" / "runs")}
    same = [sys.executable, "-c", program, "run", "-m", "train=quick", "tracker=off", "pack=1", "study=s", *short]
    assert subprocess.run([*same, "cluster.threads=1"], env=away, timeout=PATIENCE_S).returncode == 0
    for seed in (0, 1):
        folder = lab.folder(seed)
        here = tmp_path / "here" / "runs" / folder.id
        assert (here / "metrics.jsonl").read_bytes() == folder.metrics.read_bytes() != b"", "the same id, the same bits"

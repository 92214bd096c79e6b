"""The test cluster is what the other tests take it for."""

from pathlib import Path

from slurm_lab import said, until

HERE = Path(__file__).parent


def test_two_nodes_with_two_gpus_each_that_jobs_see():
    seen = said("srun", "--nodes=2", "--gpus-per-node=1", "--mem=50", "sh", "-c",
                "echo $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES")  # fmt: skip
    assert sorted(seen.splitlines()) == ["node1 0", "node2 0"]


def test_up_does_nothing_where_it_is_up():
    until(lambda: not said("squeue", "--noheader"))
    # A node stays "planned" for a moment after the task that it was planned for is gone.
    until(lambda: set(said("sinfo", "--noheader", "--Node", "--format=%t").split()) == {"idle"})
    before = said("scontrol", "ping"), said("sinfo", "--noheader", "--Node", "--format=%N %t")
    assert "is up" in said(str(HERE / "up.sh"))
    assert (said("scontrol", "ping"), said("sinfo", "--noheader", "--Node", "--format=%N %t")) == before


def test_accounting_answers():
    assert said("sacct", "--noheader", "--parsable2", "--allocations", "--format=State").splitlines()

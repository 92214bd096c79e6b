"""A process whose address space is limited (`ulimit -v`): the pack does not fit, its halves do."""

import json
import os
import subprocess
import sys

import pytest

from ablora.config import ask
from ablora.spec import RunSpec
from ablora.store import lines
from ablora.store.roots import Roots
from ablora.store.run_folder import RunFolder, create
from ablora.tree import build

CHILD = """
import json, re, resource, sys
from pathlib import Path
import torch
from ablora.dispatch.base import Job
from ablora.dispatch.job import work
from ablora.store.roots import Roots
from ablora.track import TrackerConfig

packs, allowance = json.loads(sys.argv[1]), int(sys.argv[2])
roots = Roots.from_environment()
job = lambda packs: Job(tuple(map(tuple, packs)), roots, None, TrackerConfig(kind="off"))
work(job(packs[:1]), threads=1)  # whatever is loaded once is there
size = int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10
resource.setrlimit(resource.RLIMIT_AS, (size + allowance, size + allowance))
work(job(packs[1:]), threads=1)
"""
RUNS = 8
RANK = 128
"""So large that factors and optimizers count beside a pass, which is no larger for eight runs than for one."""
ALLOWANCE = 300 << 20
"""The eight do not fit in it. At 350 MiB the fours did, at 250 only the twos."""


def specs(*arguments: str) -> list[RunSpec]:
    fixed = ["train=quick", "dataset=arithmetic", "eval.tasks.generation=null", "eval.at_start=false"]
    fixed += ["train.batch_size=16", "train.max_steps=6", "train.warmup_steps=0", "train.checkpoint_every=2"]
    cells = ask([*fixed, *arguments], multirun=True).cells
    return [build(cell.tree, RunSpec) for cell in cells]


def child(roots: Roots, packs: list[list[str]], allowance: int) -> str:
    environment = {**os.environ, **roots.environment(), "MALLOC_ARENA_MAX": "1"}
    command = [sys.executable, "-c", CHILD, json.dumps(packs), str(allowance)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stderr


def losses(folder: RunFolder) -> list[float]:
    return [r["loss_nats"] for r in lines.read(folder.metrics) if r["kind"] == "train"]


@pytest.mark.slow
def test_a_pack_that_does_not_fit_goes_on_in_halves_from_its_checkpoints(tmp_path):
    seeds = ",".join(map(str, range(RUNS + 1)))
    found = {}
    for name, allowance in (("wide", 64 << 30), ("narrow", ALLOWANCE)):
        roots = Roots(tmp_path / name / "runs", tmp_path / name / "studies", tmp_path / name / "cache")
        folders = [create(roots, spec) for spec in specs(f"seed={seeds}", f"rank={RANK}")]
        said = child(roots, [[folders[0].id], [f.id for f in folders[1:]]], allowance)
        assert ("out_of_memory" in said) == (name == "narrow"), said
        assert all(f.result.exists() for f in folders), said
        found[name] = [losses(f) for f in folders]
    for wide, narrow in zip(found["wide"], found["narrow"]):
        assert len(wide) == len(narrow) == 6
        assert max(abs(a - b) for a, b in zip(wide, narrow)) < 1e-5

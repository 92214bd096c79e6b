"""What a site's SLURM has, and a user's mistakes in the light of it, before anything is written or queued."""

from __future__ import annotations

import subprocess
import time
from typing import TYPE_CHECKING, NamedTuple

from ablora.dispatch import scheduler
from ablora.dispatch.scheduler import NoAnswer
from ablora.spec import BadInput, check

if TYPE_CHECKING:
    from ablora.dispatch.slurm import Slurm


YOUNG_S = 60
"""A slurmctld that was started so recently may refuse every job, as its nodes have not answered yet (seen: for 5 s).
Their states do not tell: one that had jobs when slurmctld died is `mixed` from the start."""


class Partition(NamedTuple):
    """One partition, over all its kinds of node."""

    limit: str
    """The longest time, as SLURM writes it."""
    gres: frozenset[str]
    is_default: bool


def require(wanted: Slurm, tasks: int) -> None:
    """Raise a `BadInput` that names the field and what the site would take.

    sbatch by itself takes a time over the partition's limit, and the job waits for ever; what it does refuse (memory,
    account, constraint) it says itself.
    """
    try:
        found = partitions()
        most = longest_array()
    except NoAnswer as error:
        legal = f"a machine from which SLURM can be asked, such as a login node ({error}); or cluster=local"
        raise BadInput("cluster", "slurm", legal) from error
    legal = f"a partition of this site: {', '.join(found)}"
    check(wanted.partition is None or wanted.partition in found, "cluster.partition", wanted.partition, legal)
    chosen = wanted.partition or next((name for name, one in found.items() if one.is_default), None)
    check(chosen is not None, "cluster.partition", None, f"{legal} (there is no default one)")
    _require_time(wanted, str(chosen), found[str(chosen)])
    _require_gpus(wanted, str(chosen), found)
    _require_pyxis(wanted)
    _require_accepted(wanted, min(tasks, most))


def _require_time(wanted: Slurm, name: str, partition: Partition) -> None:
    limit, asked = scheduler.minutes(partition.limit), scheduler.minutes(wanted.time)
    fits = limit is None or (asked is not None and asked <= limit)
    check(fits, "cluster.time", wanted.time, f"at most {partition.limit}, the limit of the partition {name}")


def _require_gpus(wanted: Slurm, name: str, found: dict[str, Partition]) -> None:
    if not wanted.gpu_count:
        return
    kind = str(wanted.gpus).rpartition(":")[0]
    have = {other: sorted({_kind(gres) for gres in one.gres if gres.startswith("gpu")}) for other, one in found.items()}
    here = have[name]
    if here and (not kind or kind in here):
        return
    others = [other for other, kinds in have.items() if kinds and (not kind or kind in kinds)]
    there = f"; there are some in {', '.join(others)}" if others else ""
    kinds = f"one of its GPUs ({', '.join(filter(None, here)) or 'without a type'})" if here else "0, as it has no GPUs"
    raise BadInput("cluster.gpus", wanted.gpus, f"for the partition {name}, {kinds}{there}")


def _require_pyxis(wanted: Slurm) -> None:
    """Where pyxis is installed, which it has to be on login nodes too, srun lists its options."""
    used = [option for option in wanted.srun_options if option.lstrip("-").startswith("container-")]
    if used and "--container-image" not in scheduler.ask("srun", "--help"):
        legal = "of a site with pyxis (its srun --help lists --container-image); for Apptainer, cluster.container"
        raise BadInput("cluster.srun_options", used[0], legal)


def _kind(gres: str) -> str:
    """The type in gpu:a100:4(S:0-1); empty in gpu:4."""
    parts = gres.partition("(")[0].split(":")
    return parts[1] if len(parts) == 3 else ""


def _require_accepted(wanted: Slurm, tasks: int) -> None:
    options = [f"--{name}={value}" if value else f"--{name}" for name, value in wanted.sbatch_options().items()]
    command = ["sbatch", "--test-only", f"--array=0-{tasks - 1}", *options, "--wrap=true"]
    while said := _refusal(command):
        if (age_s := scheduler.age_s()) is None or age_s > YOUNG_S:
            raise BadInput("cluster", " ".join(options), f"what sbatch takes; it says: {said}")
        time.sleep(1)


def _refusal(command: list[str]) -> str:
    """What sbatch says against a job; empty where it would take it."""
    done = subprocess.run(command, capture_output=True, text=True, env=scheduler.without_a_job())
    return " ".join(done.stderr.replace("allocation failure:", "").split()) if done.returncode else ""


def partitions() -> dict[str, Partition]:
    """The partitions that are up, by name."""
    out: dict[str, Partition] = {}
    for line in scheduler.ask("sinfo", "--noheader", "--format=%P|%l|%G|%a").splitlines():
        name, limit, gres, up = line.split("|")
        if up == "up":
            before = out.get(name.rstrip("*"))
            found = frozenset(gres.split(",")) | (before.gres if before else frozenset())
            out[name.rstrip("*")] = Partition(limit, found, name.endswith("*"))
    return out


def longest_array() -> int:
    """The most tasks of one array: its indices are less than the site's MaxArraySize."""
    return int(scheduler.configuration().get("MaxArraySize", 1001))

"""The batch script of an array, as submitit is told of it: what it asks for, and how its processes are started."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablora.dispatch.task import AGAIN, AGAIN_FILE

if TYPE_CHECKING:
    from ablora.dispatch.slurm import Slurm

TASK = '"${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"'
"""A task's name in a batch script; the raw number of an array's last task is the array's own."""


KEEP_BACK = "env --block-signal=USR2"
"""Without it SIGUSR2, which may come in the seconds before Python can hear it, kills the task. With it the signal waits
until `work_in_task` lets it in. Older coreutils than 8.31 have no such option; pyxis would start an image's own."""


def python_of(wanted: Slurm) -> str:
    """How Python is called on a node."""
    in_image = any(option.lstrip("-").startswith("container-") for option in wanted.srun_options)
    parts = (None if in_image else "$keep_back", wanted.container, wanted.python or sys.executable)
    return " ".join(filter(None, parts))


def parameters(
    wanted: Slurm, name: str, tasks: int, variables: Mapping[str, str], options: Mapping[str, str], folder: Path,
    processes: int,
) -> dict[str, Any]:  # fmt: skip
    """What submitit's `update_parameters` takes for a held array of so many tasks, with so many processes in each.

    `options` are sbatch's, `folder` has the logs. An exit of one process must not end the others, which may be writing
    checkpoints; and srun gives their highest exit code, which may be that of a process that was killed, so that with
    several processes the wish to be requeued is a file.
    """
    exports = [f"export {key}={_quoted(value)}" for key, value in variables.items()]
    exports.append(f'keep_back=$({KEEP_BACK} true 2> /dev/null && echo "{KEEP_BACK}" || true)')
    again = f"[ $code = {AGAIN} ]"
    # srun does not take it from the job since SLURM 22.05
    srun = [f"--cpus-per-task={wanted.cpus}"]
    if processes > 1:
        exports += [f"export {AGAIN_FILE}={_quoted(str(folder))}/{TASK}.again", f'rm -f "${AGAIN_FILE}"']
        again += f' || [ -e "${AGAIN_FILE}" ]'
        srun += [f"--ntasks={processes}", "--kill-on-bad-exit=0", "--wait=0"]
    return {
        "job_name": name,
        "wckey": None,  # submitit's default is its own name, which a site with wckeys refuses
        "setup": [*wanted.setup, *exports],
        "teardown": ["code=$?", f"if {again}; then scontrol requeue {TASK}; fi", "exit $code"],
        "srun_args": [*srun, *(f"--{option.lstrip('-')}" for option in wanted.srun_options)],
        "array_parallelism": wanted.array_parallelism or tasks,
        "additional_parameters": {
            "hold": True, **{key: value or True for key, value in options.items()}, "ntasks-per-node": processes
        },
    }  # fmt: skip


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "'\\''") + "'"

"""The batch scripts that settings come to: those of every example in docs/cluster.md, as sbatch would read them."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from submitit.slurm.slurm import _make_sbatch_string

from ablora.config.loader import conf_dir
from ablora.dispatch import scheduler, slurm_script, slurm_site
from ablora.dispatch.base import Job
from ablora.dispatch.slurm import Slurm
from ablora.dispatch.task import environment
from ablora.spec import BadInput
from ablora.store.roots import Roots
from ablora.study.execution import execution_of
from ablora.track import TrackerConfig

DOCUMENT = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text()
EXAMPLES = dict(re.findall(r"```yaml conf/cluster/(\w+)\.yaml\n(.*?)```", DOCUMENT, re.DOTALL))
RENDERED = {
    "ours": [
        "#SBATCH --partition=gpu", "#SBATCH --account=lab42", "#SBATCH --qos=long",
        "#SBATCH --constraint='a100&nvlink'", "#SBATCH --reservation=course", "#SBATCH --gpus-per-node=a100:1",
        "#SBATCH --cpus-per-task=8", "#SBATCH --mem=64G", "#SBATCH --time=12:00:00", "#SBATCH --mail-type=END",
        "#SBATCH --array=0-5%6", "#SBATCH --signal=USR2@120", "#SBATCH --requeue", "#SBATCH --hold",
        "#SBATCH --ntasks-per-node=1", "#SBATCH --nodes=1",
    ],
    "modules": ["module load python/3.11 cuda/12.4", "source /shared/envs/ablora/bin/activate",
                "srun ... --cpus-per-task=4 $keep_back python -u -m submitit.core._submit /s/jobs"],
    "conda": ["source /opt/conda/etc/profile.d/conda.sh", "conda activate ablora",
              "srun ... --cpus-per-task=4 $keep_back python -u -m submitit.core._submit /s/jobs"],
    "apptainer": ["srun ... --cpus-per-task=4 $keep_back apptainer exec --nv --bind /shared /images/torch.sif python3 "
                  "-u -m submitit.core._submit /s/jobs"],
    "pyxis": ["srun ... --cpus-per-task=4 --container-image=/images/torch.sqsh --container-mounts=/shared:/shared "
              "python3 -u -m submitit.core._submit /s/jobs"],
    "nodes": [
        "#SBATCH --ntasks-per-node=4", "#SBATCH --gpus-per-node=4", "#SBATCH --cpus-per-task=16", "#SBATCH --mem=0",
        "#SBATCH --exclusive", "#SBATCH --array=0-5%6",
        "export ABLORA_AGAIN='/s/jobs'/\"${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+"
        '_$SLURM_ARRAY_TASK_ID}".again',
        'if [ $code = 75 ] || [ -e "$ABLORA_AGAIN" ]; then scontrol requeue "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}'
        '${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"; fi',
        "srun ... --cpus-per-task=16 --ntasks=4 --kill-on-bad-exit=0 --wait=0 $keep_back PYTHON -u -m "
        "submitit.core._submit /s/jobs",
    ],
    "staged": ["export ABLORA_STAGE='$TMPDIR'"],
    "short": ["#SBATCH --partition=short", "#SBATCH --time=30", "#SBATCH --signal=USR2@300", "#SBATCH --no-requeue",
              "#SBATCH --array=0-5%6"],
}  # fmt: skip
"""Lines of each; in that of srun the logs' places are left out."""


def cluster(name: str, folder: Path, *overrides: str) -> Slurm:
    (folder / "cluster").mkdir(exist_ok=True)
    (folder / "cluster" / f"{name}.yaml").write_text(EXAMPLES[name])
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        found = compose("config", [f"cluster={name}", f"hydra.searchpath=[file://{folder}]", *overrides])
    tree: Any = OmegaConf.to_container(found)
    made = execution_of(tree).cluster
    assert isinstance(made, Slurm)
    return made


def script(wanted: Slurm, processes: int | None = None, folder: Path = Path("/s/jobs")) -> str:
    """What submitit hands to sbatch."""
    job = Job((), Roots(Path("/s/runs"), Path("/s/studies"), Path("/s/cache")), "s", TrackerConfig("off"))
    variables, tasks = environment(job, "/s/code", wanted.stage), 6
    own = wanted.processes if processes is None else processes
    told = slurm_script.parameters(wanted, "abl-1", tasks, variables, wanted.sbatch_options(), folder, own)
    command = f"{slurm_script.python_of(wanted)} -u -m submitit.core._submit {folder}"
    return _make_sbatch_string(command=command, folder=folder, map_count=tasks, **told)


def lines(text: str) -> list[str]:
    logs = r"srun --unbuffered --output \S+ --error \S+"
    return [re.sub(logs, "srun ...", line).replace(sys.executable, "PYTHON") for line in text.splitlines()]


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_of_the_document_comes_to_its_batch_script(name, tmp_path):
    text = script(cluster(name, tmp_path))
    missing = [line for line in RENDERED[name] if line not in lines(text)]
    assert not missing, text
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0, "it is no shell"


@pytest.mark.parametrize(("coreutils", "blocked"), [("", True), ("env() { return 125; }", False)], ids=["new", "old"])
def test_python_starts_with_the_signal_kept_back_where_env_can_do_it(tmp_path, coreutils, blocked):
    (set_up,) = (line for line in lines(script(cluster("ours", tmp_path))) if line.startswith("keep_back="))
    ask = "import signal; print(signal.SIGUSR2 in signal.pthread_sigmask(signal.SIG_BLOCK, ()))"
    text = f"set -e\n{coreutils}\n{set_up}\n$keep_back {sys.executable} -c '{ask}'"
    told = subprocess.run(["bash"], input=text, text=True, capture_output=True)
    assert told.stdout.split() == [str(blocked)], told.stderr


@pytest.mark.parametrize(
    ("wanted", "short_s"),
    [
        ({"time": 60}, 1710),
        ({"time": 60, "options": ("time=1-0",)}, 43110),
        ({"time": 2}, 0),
        ({"time": "UNLIMITED"}, None),
    ],
)
def test_what_is_short_for_a_task_is_half_of_what_it_has_until_it_is_told(wanted, short_s):
    assert Slurm(**wanted)._short_s == short_s


def _config(as_of: str, boot: str = "2026-11-30T06:46:27") -> str:
    return f"Configuration data as of {as_of}\nBOOT_TIME               = {boot}\nClusterName             = lab\n"


def test_a_refusal_by_a_slurmctld_that_has_just_been_started_is_not_final(monkeypatch):
    refusals = iter(["Requested node configuration is not available"] * 3 + [""])
    monkeypatch.setattr(slurm_site, "_refusal", lambda command: next(refusals))
    monkeypatch.setattr(scheduler, "ask", lambda *_: _config("2026-11-30T06:46:31"))
    monkeypatch.setattr(slurm_site.time, "sleep", lambda seconds: None)
    slurm_site._require_accepted(Slurm(), 1)
    assert next(refusals, None) is None, "asked until it was taken"


@pytest.mark.parametrize("config", [_config("2026-11-30T06:47:28"), _config("2026-11-30T06:46:31", "(null)"), ""])
def test_one_by_a_slurmctld_that_is_up_for_long_or_does_not_say_is(monkeypatch, config):
    """The first after a minute and a second."""
    monkeypatch.setattr(slurm_site, "_refusal", lambda command: "no")
    monkeypatch.setattr(scheduler, "ask", lambda *_: config)
    with pytest.raises(BadInput, match="what sbatch takes; it says: no"):
        slurm_site._require_accepted(Slurm(), 1)


def test_the_document_has_one_of_each_kind():
    assert EXAMPLES.keys() == RENDERED.keys()


def test_tasks_of_several_processes(tmp_path):
    wanted = cluster("nodes", tmp_path)
    assert (wanted.tasks(8), wanted.tasks(9), wanted.places, wanted.at_once(9)) == (1, 2, 4, 8)
    assert wanted.memory_gib is None
    assert cluster("nodes", tmp_path, "cluster.gpus=0").memory_gib is None, "all of a node, whatever that has"
    assert cluster("nodes", tmp_path, "cluster.gpus=0", "cluster.memory=64G").memory_gib == 16
    alone = script(wanted, processes=1)
    assert "--ntasks=4" not in alone, "a preparation is one process"
    assert "#SBATCH --ntasks-per-node=1" in alone


@pytest.mark.parametrize(
    ("given", "legal"),
    [
        ({"gpus": 4, "processes": 2}, r"processes=2 is not legal: 1, or one for each GPU \(cluster.gpus=4\)"),
        ({"stage": "scratch"}, "stage='scratch' is not legal: null, or a folder on a node: an absolute path"),
        ({"processes": 0}, "processes=0 is not legal: an integer of at least 1"),
    ],
)
def test_what_cannot_be(given, legal):
    with pytest.raises(BadInput, match=legal):
        Slurm(**given)


@pytest.mark.parametrize("has", [True, False])
def test_a_site_without_pyxis_is_told_from_one_that_has_it(has, tmp_path, monkeypatch):
    monkeypatch.setattr(scheduler, "ask", lambda *_: "      --container-image=[USER@]IMAGE" if has else "--container")
    wanted = cluster("pyxis", tmp_path)
    if has:
        slurm_site._require_pyxis(wanted)
        return
    with pytest.raises(BadInput, match=r"cluster\.srun_options='container-image=/images/torch.sqsh' is not legal"):
        slurm_site._require_pyxis(wanted)


@pytest.mark.parametrize(
    ("processes", "exits", "wishes", "requeued"),
    [(1, 75, False, True), (1, 1, False, False), (4, 75, True, True), (4, 137, True, True), (4, 137, False, False)],
)
def test_the_script_requeues_its_task_for_those_that_wish_it(processes, exits, wishes, requeued, tmp_path, monkeypatch):
    """What srun gives is the highest exit code of all processes: a killed one's hides another's wish."""
    programs, jobs = tmp_path / "bin", tmp_path / "jobs"
    programs.mkdir()
    jobs.mkdir()
    wish = 'touch "$ABLORA_AGAIN"' if wishes else "true"
    (programs / "srun").write_text(f"#!/bin/sh\n{wish}\nexit {exits}\n")
    (programs / "scontrol").write_text(f"#!/bin/sh\necho $@ >> {tmp_path}/asked\n")
    for program in programs.iterdir():
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "25")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    wanted = Slurm(processes=processes, gpus=processes)
    text = script(wanted, folder=jobs)
    (jobs / "25_3.again").touch()  # of an earlier life
    assert subprocess.run(["bash"], input=text, text=True).returncode == exits
    asked = tmp_path / "asked"
    assert (asked.read_text() if asked.exists() else "") == ("requeue 25_3\n" if requeued else "")

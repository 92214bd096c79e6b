"""The command line as a newcomer, a script and Hydra's own users meet it, in processes of their own."""

import subprocess
import sys
from pathlib import Path

import pytest

from ablora.cli import COMMANDS, main
from ablora.store.roots import Roots

TINY = [
    "train=quick",
    "tracker=off",
    "train.max_steps=2",
    "train.batch_size=2",
    "eval.at_start=false",
    "eval.tasks.generation=null",
    "eval.tasks.validation_answer_loss=null",
    "eval.tasks.answer_loss.max_items=2",
    "cluster.threads=1",
]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ABLORA_RUNS", raising=False)
    monkeypatch.setenv("ABLORA_CACHE", str(tmp_path / "cache"))


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, timeout=300)


def folders() -> list[str]:
    return sorted(path.name for path in Path.cwd().iterdir())


def test_bare_shows_the_five_commands_of_a_newcomer(capsys):
    assert main([]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  ablora ")]
    assert [line.split()[1] for line in lines] == ["run", "run", "plan", "status", "figures"]


def test_help_has_every_command(capsys):
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"ablora {name} " in said for name in COMMANDS)


def test_a_real_run_from_command_to_result_and_a_second_that_finds_it_done():
    first = run("ablora.cli", "run", *TINY)
    assert first.returncode == 0, first.stderr
    (folder,) = Roots.from_environment().runs.iterdir()
    assert "answer_loss_nats" in first.stdout
    assert "done in" in first.stderr
    before = (folder / "result.json").stat().st_mtime_ns
    assert run("ablora.app", *TINY).returncode == 0
    assert (folder / "result.json").stat().st_mtime_ns == before
    assert folders() == ["cache", "runs", "studies"]


def test_a_mistake_in_a_process_is_one_line_and_code_2():
    for module in (["ablora.cli", "run"], ["ablora.app"], ["ablora.app", "-m"]):
        process = run(*module, "rank=0")
        assert process.returncode == 2
        assert process.stderr.splitlines() == ["ablora: rank=0 is not legal: an integer of at least 1"]
    assert folders() == []


def test_hydras_multirun_is_a_study():
    process = run("ablora.app", "-m", "seed=0,1", "study=s", "rank=0,8")
    assert process.returncode == 2
    assert "in the cell seed=0 rank=0, and 1 more cells" in process.stderr
    process = run("ablora.app", "-m", "seed=0,1", "study=s", *TINY)
    assert process.returncode == 0, process.stderr
    assert (Roots.from_environment().studies / "s/manifest.jsonl").read_text().count("\n") == 2
    assert folders() == ["cache", "runs", "studies"]


def test_hydras_own_sweeper_still_works():
    process = run("ablora.cli", "run", "-m", "hydra/sweeper=basic", "seed=0,1", *TINY)
    assert process.returncode == 0, process.stderr
    assert len(list(Path("runs").iterdir())) == 2
    assert folders() == ["cache", "runs", "studies"]


def test_hydras_submitit_launcher_still_works():
    process = run("ablora.app", "-m", "hydra/launcher=submitit_local", "seed=0,1", *TINY)
    assert process.returncode == 0, process.stderr
    assert len(list(Path("runs").glob("*/result.json"))) == 2
    assert not Path("studies/default").exists(), "a job for each run, and no study of ours"
    assert list(Path("studies/.hydra/.submitit").iterdir())


def test_hydras_flags_show_the_configuration():
    process = run("ablora.cli", "run", "method=milora", "--cfg", "job", "--package", "method")
    assert process.returncode == 0
    assert "SvdMinor" in process.stdout or "svd_minor" in process.stdout
    assert run("ablora.app", "--help").returncode == 0
    assert folders() == []


def test_completion_offers_groups(monkeypatch):
    monkeypatch.setenv("COMP_LINE", "ablora run -m method=mi")
    monkeypatch.setenv("COMP_POINT", "23")
    process = run("ablora.cli", "-sc", "query=bash")
    assert "method=milora" in process.stdout, process.stderr
    assert folders() == []

"""A question, from the command line to its last run: what is run, what is not, and what is said about it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import fake_execute
from ablora.cli import main
from ablora.store import lines
from ablora.store.claims import latest, take
from ablora.store.roots import Roots
from ablora.store.run_folder import RunFolder, folder_of

pytestmark = pytest.mark.usefixtures("fake")
QUICK = ["train=quick", "tracker=off"]


def manifest(roots: Roots, name: str) -> list[dict]:
    return list(lines.read(roots.studies / name / "manifest.jsonl"))


def executions(roots: Roots) -> int:
    return sum(len(path.read_text().splitlines()) for path in roots.runs.glob("*/executed.txt"))


def study(*arguments: str) -> int:
    return main(["run", "-m", *QUICK, *arguments])


def test_a_single_run_leaves_its_folder_and_no_study(roots, capsys):
    assert main(["run", *QUICK, "rank=4"]) == 0
    (run,) = roots.runs.iterdir()
    assert str(run) in capsys.readouterr().out
    assert sorted(p.name for p in Path.cwd().iterdir()) == ["cache", "runs", "studies"]
    assert not list(roots.studies.iterdir())


def test_a_multirun_is_a_study_with_a_derived_name(roots):
    assert study("method=lora,pissa", "rank=4,8", "seed=0,1") == 0
    (folder,) = roots.studies.iterdir()
    assert folder.name.startswith("arithmetic-method-rank-seed-")
    rows = manifest(roots, folder.name)
    assert rows[0]["labels"] == {"method": "lora", "rank": 4, "seed": 0}
    assert {row["pack"] for row in rows} == {0}
    plan = json.loads((folder / "plan.json").read_text())
    assert (plan["cells"], plan["runs"], plan["duplicates"], plan["packs"]) == (8, 8, 0, 1)
    assert executions(roots) == 8


def test_equal_cells_are_one_run(roots):
    assert study("method=pissa,milora", "method/init=svd_minor", "study=s") == 0
    first, second = manifest(roots, "s")
    assert first["id"] == second["id"] == second["duplicate_of"]
    assert "duplicate_of" not in first
    assert executions(roots) == 1


def test_the_same_command_again_runs_nothing(roots):
    assert study("seed=0,1", "study=s") == study("seed=0,1", "study=s") == 0
    assert executions(roots) == 2


def test_runs_are_shared_between_studies(roots):
    study("seed=0,1", "study=a")
    study("seed=1,2", "study=b")
    assert executions(roots) == 3


def test_a_study_grows_and_its_packs_keep_their_numbers(roots):
    study("seed=1,2", "study=s")
    before = {row["id"]: row["pack"] for row in manifest(roots, "s")}
    study("seed=0,1,2", "study=s")
    after = {row["id"]: row["pack"] for row in manifest(roots, "s")}
    assert before.items() <= after.items()
    assert sorted(after.values()) == [0, 0, 1]


def test_a_study_does_not_lose_cells(roots, capsys):
    study("seed=0,1", "study=s")
    before = (roots.studies / "s/manifest.jsonl").read_bytes()
    assert study("seed=1,2", "study=s") == 2
    assert "another name: this study has 1 runs" in capsys.readouterr().err
    assert (roots.studies / "s/manifest.jsonl").read_bytes() == before
    assert len(list(roots.runs.iterdir())) == 2


def test_failures_are_reported_and_end_nothing(roots, capsys):
    seeds = [fake_execute.MEMORY, fake_execute.DISK, fake_execute.BUG, fake_execute.DIVERGES, 0]
    assert study(f"seed={','.join(map(str, seeds))}", "study=s", "pack=1", "train.batch_size=1") == 3
    said = capsys.readouterr().err
    for words in ("out_of_memory: 4 GiB", "disk_full", "bug: division by zero", "diverged: loss is nan"):
        assert words in said
    assert "4 of 5 runs are not done" in said
    assert said.splitlines()[-1] == "to try the failed ones again: ablora retry s [--only CLASS]"


def test_a_failed_run_is_tried_again_only_when_asked(roots, capsys):
    arguments = (f"seed={fake_execute.BUG},{fake_execute.MEMORY}", "study=s", "pack=1", "train.batch_size=1")
    study(*arguments)
    assert study(*arguments) == 3
    assert executions(roots) == 2
    assert main(["retry", "s", "--only", "bug"]) == 3
    assert executions(roots) == 3
    assert len(list(roots.runs.glob("*/failure.0.json"))) == 1
    assert main(["retry", "s", "--only", "timeout"]) == 2
    assert "the class of a failed run of this study: out_of_memory" in capsys.readouterr().err
    assert main(["run", "-m", "--retry", *QUICK, *arguments]) == 0
    assert executions(roots) == 4


def test_resume_needs_the_manifest_alone(roots, monkeypatch, capsys):
    monkeypatch.setattr("ablora.dispatch.inline.Inline.drain", lambda self, job, folder: None)
    assert study("seed=0,1", "study=s") == 3
    assert "ablora resume s, or the same command" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.chdir(roots.runs.parent)
    monkeypatch.setattr("ablora.dispatch.job.execute", fake_execute.execute)
    monkeypatch.setattr("ablora.config.loader.conf_dir", lambda: Path("/nonexistent"))
    assert main(["resume", "s"]) == 0
    assert executions(roots) == 2


def test_runs_that_a_living_process_holds_are_left_to_it(roots, capsys):
    study("seed=0,1", "study=s")
    first = folder_of(roots, manifest(roots, "s")[0]["id"])
    first.result.unlink()
    assert take(first) is not None
    assert study("seed=0,1", "study=s") == 3
    assert f"{first.id} is being run by another process" in capsys.readouterr().err
    assert executions(roots) == 2


def test_a_corrupted_result_is_named_and_nothing_is_done(roots, capsys):
    study("seed=0", "study=s")
    (run,) = roots.runs.iterdir()
    (run / "result.json").write_text('{"schema": 1, "id"')
    assert study("seed=0,1", "study=s") == 2
    said = capsys.readouterr().err
    assert str(run / "result.json") in said
    assert "move the file away" in said
    assert len(list(roots.runs.iterdir())) == 1


def test_an_interrupt_ends_with_130_and_the_same_command_goes_on(roots, monkeypatch, capsys):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ablora.dispatch.job.execute", interrupted)
    assert study("seed=0,1", "study=s") == 130
    assert "the same command" in capsys.readouterr().err
    monkeypatch.setattr("ablora.dispatch.job.execute", fake_execute.execute)
    assert study("seed=0,1", "study=s") == 0


def test_a_plan_says_what_would_happen_and_writes_nothing(roots, capsys):
    arguments = [*QUICK, "method=pissa,milora", "method/init=svd_minor,zero_b", "rank=4,8"]
    assert main(["plan", "-m", *arguments]) == 0
    said = capsys.readouterr().out
    assert "cells: 8, of which 4 are the same run" in said
    assert "method=milora method/init=svd_minor rank=4  is  method=pissa method/init=svd_minor rank=4" in said
    assert "4 runs in 1 pack (inline)" in said
    assert "rank 4: 58,368" in said
    assert not list(Path.cwd().iterdir())


def test_a_plan_says_what_the_seeds_will_be_able_to_show(roots, capsys):
    main(["plan", "-m", *QUICK, "method=lora,pissa", "seed=0,1,2"])
    assert "statistics: 3 seeds, 1 comparison: smallest detectable difference 3.3 sd" in capsys.readouterr().out
    main(["plan", "-m", *QUICK, "method=lora,pissa"])
    assert "it will not say what another seed would give" in capsys.readouterr().out


def test_a_plan_counts_what_is_done(roots, capsys):
    study("seed=0,1")
    capsys.readouterr()
    main(["plan", "-m", *QUICK, "seed=0,1,2"])
    assert "runs: 3 runs (2 done, 1 planned)" in capsys.readouterr().out


def test_a_command_waits_for_what_another_process_is_at(roots):
    """As after a kill of the controller alone: its worker lives on and finishes; the same command sees it through."""
    assert study("seed=0") == 0
    (run,) = roots.runs.iterdir()
    folder = RunFolder(run)
    result = folder.result.read_bytes()
    folder.result.unlink()
    code = (
        "import sys, time; from pathlib import Path; from ablora.store.claims import take; "
        "from ablora.store.run_folder import RunFolder; folder = RunFolder(Path(sys.argv[1])); assert take(folder); "
        "print('held', flush=True); time.sleep(2); folder.result.write_bytes(sys.stdin.buffer.read())"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    other = subprocess.Popen([sys.executable, "-c", code, str(run)], **pipes)
    assert other.stdout.readline() == b"held\n"
    other.stdin.write(result)
    other.stdin.close()
    assert study("seed=0") == 0
    assert other.wait(timeout=5) == 0
    assert latest(folder) == 1, "the run was left to the process that had it"

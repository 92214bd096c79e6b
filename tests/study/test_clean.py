"""What `ablora clean` frees, and what it never touches: whole folders are compared before and after."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ablora.cli import main
from ablora.store import atomic
from ablora.store.claims import release, take
from ablora.store.roots import Roots
from ablora.store.run_folder import RunFolder, folder_of
from ablora.study import clean as module
from ablora.study.clean import clean, size
from ablora.study.manifest import Row, StudyFolder

DONE, DIVERGED, MEMORY, PLANNED, LOST, RUNNING, SHARED = (f"{i:012x}" for i in range(1, 8))


@pytest.fixture
def study(roots: Roots) -> Roots:
    """One run of each kind, each with a checkpoint of 3,000 bytes in two files and a snapshot of 500."""
    for run in (DONE, DIVERGED, MEMORY, PLANNED, LOST, RUNNING, SHARED):
        folder = made(roots, run)
        claim = take(folder)
        assert claim is not None
        if run in (DONE, SHARED):
            atomic.write_json(folder.result, {"schema": 1, "id": run, "step": 3, "metrics": {}})
        if run in (DIVERGED, MEMORY):
            kind = "diverged" if run == DIVERGED else "out_of_memory"
            atomic.write_json(folder.failure, {"schema": 1, "id": run, "class": kind, "message": ""})
        if run != RUNNING:
            release(claim)
        if run == LOST:
            orphan(folder)
    planned(roots, "s", DONE, DIVERGED, MEMORY, PLANNED, LOST, RUNNING, SHARED, DONE)
    planned(roots, "other", SHARED)
    return roots


def made(roots: Roots, run: str) -> RunFolder:
    folder = folder_of(roots, run)
    for name, number in (("checkpoint/a", 1000), ("checkpoint/b", 2000), ("snapshots/final", 500), ("adapter/x", 7)):
        (folder.path / name).parent.mkdir(parents=True, exist_ok=True)
        (folder.path / name).write_bytes(b"x" * number)
    folder.metrics.write_text('{"kind": "train", "step": 3}\n')
    return folder


def planned(roots: Roots, name: str, *runs: str) -> None:
    StudyFolder(roots.studies / name).write([Row(run, {"n": i}, "lora", i) for i, run in enumerate(runs)], [], {})


def orphan(folder: RunFolder) -> None:
    """The owner's process is gone, without a word."""
    (folder.path / "claim.0.released").unlink()
    owner = folder.path / "claim.0.json"
    owner.write_text(json.dumps({**json.loads(owner.read_text()), "started": "1"}))


def tree(roots: Roots) -> dict[str, bytes]:
    """Every file below the runs but the claims, which a clean adds to."""
    files = (path for path in roots.runs.rglob("*") if path.is_file() and not path.name.startswith("claim."))
    return {str(path.relative_to(roots.runs)): path.read_bytes() for path in files}


def checkpoints(roots: Roots) -> set[str]:
    return {path.parent.name for path in roots.runs.glob("*/checkpoint")}


def test_frees_what_is_done_or_diverged_and_nothing_else(study, capsys):
    before = tree(study)
    assert main(["clean", "s"]) == 0
    said = capsys.readouterr().out.splitlines()
    gone = {f"{run}/checkpoint/{slot}" for run in (DONE, DIVERGED) for slot in "ab"}
    assert tree(study) == {path: content for path, content in before.items() if path not in gone}
    assert [line.split("  ")[1:] for line in said if line.startswith("freed")] == [["2 files", "2.9 KiB"]] * 2
    assert said[-1] == "s: freed 4 files, 5.9 KiB of 2 runs; kept folders: 5"


def test_says_why_it_kept_what_it_kept(study, capsys):
    main(["clean", "s"])
    kept = {line.split("/")[-2]: line for line in capsys.readouterr().out.splitlines() if line.startswith("kept")}
    reasons = {MEMORY: "--failed frees it", PLANNED: "planned; it goes on", LOST: "lost; it goes on",
               RUNNING: "running", SHARED: "study other has this run too"}  # fmt: skip
    assert kept.keys() == reasons.keys()
    assert all(reason in kept[run] for run, reason in reasons.items())


def test_a_dry_run_says_the_same_and_frees_nothing(study, capsys):
    before = {path: path.stat().st_mtime_ns for path in sorted(study.runs.rglob("*"))}
    assert main(["clean", "s", "--dry-run"]) == 0
    dry = capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in sorted(study.runs.rglob("*"))} == before
    main(["clean", "s"])
    assert capsys.readouterr().out == dry.replace("would free", "freed")


def test_a_second_clean_finds_nothing(study, capsys):
    main(["clean", "s"])
    capsys.readouterr()
    main(["clean", "s"])
    assert "s: freed 0 files, 0 B of 0 runs" in capsys.readouterr().out


def test_snapshots_and_failed_runs_are_freed_when_asked(study):
    main(["clean", "s", "--snapshots", "--failed"])
    assert checkpoints(study) == {PLANNED, LOST, RUNNING, SHARED}
    assert {path.parent.name for path in study.runs.glob("*/snapshots")} == {PLANNED, LOST, RUNNING, SHARED}
    assert len(list(study.runs.glob("*/adapter/x"))) == 7


def test_what_belongs_to_another_user_is_kept(study, monkeypatch):
    """Any file of it, not just the run's folder; as root by giving it away, else by being another."""
    if os.geteuid() == 0:
        os.chown(folder_of(study, DONE).checkpoint / "b", 12345, -1)
        os.chown(folder_of(study, DIVERGED).path, 12345, -1)
        owner = "belongs to user 12345"
    else:
        mine = os.geteuid()
        monkeypatch.setattr(module.os, "geteuid", lambda: mine + 1)
        owner = "belongs to"
    lines = list(clean(study, "s", dry_run=False))
    assert checkpoints(study) >= {DONE, DIVERGED}
    assert all(any(run in line and owner in line for line in lines) for run in (DONE, DIVERGED))


def test_a_link_is_not_followed(study, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    folder_of(study, DONE).checkpoint.rename(elsewhere)
    folder_of(study, DONE).checkpoint.symlink_to(elsewhere)
    assert any("a link" in line for line in clean(study, "s", dry_run=False))
    assert (elsewhere / "a").exists()


def test_another_studys_manifest_that_cannot_be_read_stops_everything(study, capsys):
    (study.studies / "other/manifest.jsonl").write_text('{"id": 1\n')
    assert main(["clean", "s"]) == 2
    assert "other/manifest.jsonl:1" in capsys.readouterr().err
    assert len(checkpoints(study)) == 7


def test_an_id_that_leads_out_of_the_runs_is_refused(study, capsys):
    planned(study, "s", "../studies")
    assert main(["clean", "s"]) == 2
    assert "12 hexadecimal digits" in capsys.readouterr().err


def test_a_result_that_cannot_be_read_keeps_its_checkpoint(study):
    folder_of(study, DONE).result.write_text('{"schema"')
    assert any("cannot be read" in line for line in clean(study, "s", dry_run=False))
    assert DONE in checkpoints(study)


def test_a_run_that_is_begun_between_the_look_and_the_claim_is_kept(study, monkeypatch):
    """Its failure is set aside and a living process takes it, just before clean would."""

    def begun(folder: RunFolder) -> None:
        folder.failure.rename(folder.path / "failure.0.json")
        assert take(folder) is not None

    looked = module._looked_at

    def looked_and_begun(run: RunFolder, path: Path, other: str, failed: bool) -> object:
        item = looked(run, path, other, failed)
        if run.id == DIVERGED:
            begun(run)
        return item

    monkeypatch.setattr(module, "_looked_at", looked_and_begun)
    assert any(DIVERGED in line and "running" in line for line in clean(study, "s", dry_run=False))
    assert DIVERGED in checkpoints(study)


def test_a_retry_that_was_only_begun_is_kept(study, monkeypatch):
    """The failure is set aside, but no process has the run yet: nothing may be freed under the claim."""
    looked = module._looked_at

    def looked_and_cleared(run: RunFolder, *rest: object) -> object:
        item = looked(run, *rest)
        if run.id == DIVERGED:
            run.failure.rename(run.path / "failure.0.json")
        return item

    monkeypatch.setattr(module, "_looked_at", looked_and_cleared)
    assert any("begun again" in line for line in clean(study, "s", dry_run=False))
    assert DIVERGED in checkpoints(study)


def test_a_run_held_by_another_process_is_kept(study):
    """Done by its result, but its process is still at it (it removes its checkpoint itself)."""
    code = (
        "import sys; from pathlib import Path; from ablora.store.claims import take; "
        "from ablora.store.run_folder import RunFolder; assert take(RunFolder(Path(sys.argv[1]))); "
        "print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(folder_of(study, DONE).path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        assert any(DONE in line and "running" in line for line in clean(study, "s", dry_run=False))
        assert DONE in checkpoints(study)
        other.communicate(b"")
    list(clean(study, "s", dry_run=False))
    assert DONE not in checkpoints(study)


def test_a_clean_that_was_killed_is_ended_by_the_next(study, monkeypatch):
    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module.shutil, "rmtree", killed)
    assert main(["clean", "s"]) == 130
    assert list(study.runs.glob("*/.cleaned-*"))
    assert DONE not in checkpoints(study)
    monkeypatch.undo()
    list(clean(study, "s", dry_run=False))
    assert not list(study.runs.glob("*/.cleaned-*"))


@pytest.mark.parametrize(("number", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB")])
def test_sizes(number, text):
    assert size(number) == text

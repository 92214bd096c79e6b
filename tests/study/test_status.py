"""States, told from disk and the host alone; and the manifest's own rules."""

import json
import time

import pytest

from ablora.cli import main
from ablora.spec import BadInput
from ablora.store import atomic, lines
from ablora.store.claims import release, take
from ablora.store.run_folder import folder_of
from ablora.study.execution import checked_name
from ablora.study.manifest import Row, StudyFolder, merged
from ablora.study.status import standing, standings


@pytest.fixture
def folder(roots):
    folder = folder_of(roots, "0123456789ab")
    folder.path.mkdir(parents=True)
    return folder


def done(folder):
    atomic.write_json(folder.result, {"schema": 1, "id": folder.id, "step": 3, "metrics": {}})


def test_planned_running_done(folder):
    assert standing(folder).state == "planned"
    claim = take(folder)
    lines.append(folder.metrics, [{"kind": "train", "step": step} for step in (1, 2)])
    assert (standing(folder).state, standing(folder).detail) == ("running", "step 2")
    done(folder)
    assert standing(folder).state == "done"
    release(claim)
    assert standing(folder).state == "done"


def test_stopped_is_planned_with_its_step(folder):
    release(take(folder))
    folder.metrics.write_text('{"kind": "train", "step": 7}\n{"kind": "tra')
    assert (standing(folder).state, standing(folder).detail) == ("planned", "step 7")


def test_lost_is_claimed_by_a_process_that_is_gone(folder):
    claim = take(folder)
    owner = folder.path / f"claim.{claim.generation}.json"
    owner.write_text(json.dumps({**json.loads(owner.read_text()), "started": "1"}))
    assert standing(folder).state == "lost"


@pytest.mark.parametrize(("text", "word"), [('{"class": "disk_full"}', "disk_full"), ('{"cla', "bug"), ("[]", "bug")])
def test_failed_with_its_class(folder, text, word):
    folder.failure.write_text(text)
    assert (standing(folder).state, standing(folder).detail) == ("failed", word)


def test_a_thousand_runs_within_two_seconds(roots):
    rows = [Row(f"{i:012x}", {"seed": i}, "lora", i) for i in range(1000)]
    for row in rows:
        folder = folder_of(roots, row.id)
        folder.path.mkdir(parents=True)
        folder.metrics.write_text('{"step": 1}\n' * 1000)
        claim = take(folder)
        if row.pack % 2:
            done(folder)
            release(claim)
    study = StudyFolder(roots.studies / "s")
    study.write(rows, [], {})
    begin = time.process_time()
    assert main(["status", "s"]) == 0
    assert time.process_time() - begin < 2
    found = standings(roots, study.rows())
    assert sum(s.state == "running" for s in found.values()) == 500


def test_status_of_all_studies_and_of_one(roots, capsys):
    StudyFolder(roots.studies / "s").write([Row("0" * 12, {"seed": 1}, "lora", 0)], [], {})
    assert main(["status"]) == 0
    assert capsys.readouterr().out == "s: 1 runs (1 planned)\n"
    assert main(["status", "s"]) == 0
    assert capsys.readouterr().out.splitlines() == ["000000000000  planned    seed=1", "s: 1 runs (1 planned)"]


@pytest.mark.usefixtures("fake")
def test_stale_is_looked_for_when_asked(roots, capsys, monkeypatch):
    main(["run", "-m", "train=quick", "tracker=off", "seed=0,1", "study=s"])
    monkeypatch.setattr("ablora.data.arithmetic.Arithmetic.revision", 99)
    capsys.readouterr()
    main(["status", "s"])
    assert "2 runs (2 done)" in capsys.readouterr().out
    main(["status", "s", "--check-stale"])
    assert "2 runs (2 stale)" in capsys.readouterr().out


def test_a_manifest_line_that_is_no_cell_is_named(roots, capsys):
    study = StudyFolder(roots.studies / "s")
    study.write([Row("0" * 12, {}, "lora", 0)], [], {})
    lines.append(study.manifest, [{"id": "x"}])
    assert main(["status", "s"]) == 2
    assert "manifest.jsonl:2" in capsys.readouterr().err


def test_merging_keeps_order_and_packs_and_takes_new_labels():
    old = [Row("b", {"rank": 4}, "lora", 0), Row("a", {"rank": 8}, "lora", 1)]
    new = [Row(run, {"rank": 4, "seed": 0}, "lora", i) for i, run in enumerate("abc")]
    grown = merged(old, new, "s")
    assert [(row.id, row.pack) for row in grown] == [("b", 0), ("a", 1), ("c", 2)]
    assert all(row.labels == {"rank": 4, "seed": 0} for row in grown)
    with pytest.raises(BadInput, match="another name"):
        merged(old, new[:1], "s")


@pytest.mark.parametrize("name", ["", "../up", "a b", ".hidden", "-flag", "a/b"])
def test_names_that_are_no_folders(name):
    with pytest.raises(BadInput):
        checked_name(name)

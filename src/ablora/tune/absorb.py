"""Trials that became runs, in the study's manifest: so that tables, figures and reports see them as they see a grid."""

from collections.abc import Iterator
from contextlib import suppress

from ablora.store import atomic
from ablora.store.roots import Roots
from ablora.store.run_folder import RunFolder, folder_of
from ablora.study.confirm import CONFIRM, TUNE
from ablora.study.manifest import Row, StudyFolder, merged
from ablora.study.status import PRUNED
from ablora.tune import frozen
from ablora.tune.storage import Trials
from ablora.tune.trial import trial_file


def look(roots: Roots, study: StudyFolder) -> None:
    """`absorb`, for a command that only reads; where the study cannot be written to, its manifest is as it was."""
    search = frozen.read(study)
    assert search is not None
    with suppress(PermissionError):
        absorb(roots, study, Trials(study, search))


def absorb(roots: Roots, study: StudyFolder, trials: Trials) -> list[Row]:
    """The manifest with every trial that has its parameters; those that confirm stay."""
    with study.lock():
        old = study.rows()
        new = [*trial_rows(roots, study, trials), *(row for row in old if row.why == CONFIRM)]
        rows = merged(old, new, study.name)
        plan = study.read_plan()
        study.write(rows, plan["overrides"], plan["execution"])
    return rows


def trial_rows(roots: Roots, study: StudyFolder, trials: Trials) -> Iterator[Row]:
    """The trials that have their parameters, as cells of the manifest: runs under their labels."""
    first: set[str] = set()
    for slot in trials.slots():
        folder = RunFolder(study.trials / str(slot))
        if not trial_file(folder).exists():
            continue
        record = atomic.read_json(trial_file(folder))
        run = folder_of(roots, record["run"])
        ended = folder.result.exists() and folder.read_result()["state"] == PRUNED and not run.result.exists()
        duplicate = record["run"] if record["run"] in first else None
        first.add(record["run"])
        why = PRUNED if ended else TUNE
        method = str(record["labels"].get("method", trials.search.arms[slot.arm].method))
        yield Row(record["run"], record["labels"], method, 0, why, duplicate)

"""`ablora prepare`: everything that runs would make in the caches, made ahead of them and said."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from ablora.spec import RunSpec
from ablora.store.roots import Roots
from ablora.store.run_folder import folder_of
from ablora.study.cell import Cell
from ablora.study.manifest import existing_study
from ablora.study.plan import make

KINDS = {"tokens": "files of tokens", "statistics": "calibration passes", "spectra": "decompositions"}
"""Folders of the cache, and what lies there."""


def prepare_cells(cells: Sequence[Cell]) -> Iterator[str]:
    """Prepare what a command would run."""
    return prepare_runs([*make(cells).specs.values()])


def prepare_study(name: str) -> Iterator[str]:
    """Prepare a study that is planned already."""
    roots = Roots.from_environment()
    runs = dict.fromkeys(row.id for row in existing_study(roots, name).rows())
    return prepare_runs([folder_of(roots, run).read_spec() for run in runs])


def prepare_runs(specs: Sequence[RunSpec]) -> Iterator[str]:
    """Lines of text, each when it is done; what was prepared before is looked at and not made again."""
    from ablora.train.needs import files_of, missing, needs_of  # late: they import torch
    from ablora.train.prepare import prepare

    roots = Roots.from_environment()
    roots.require_writable()
    yield f"data: {_read(specs)}"
    needs = needs_of(specs)
    lacking = missing(needs.values(), roots.cache)
    made: set[Path] = set()
    there = {path for need in needs.values() for path in files_of(need, roots.cache)}
    for need, files in prepare(lacking, roots.cache):
        fresh = {path for path, is_new in files.items() if is_new}
        if fresh - made:
            yield f"{need}: {len(fresh - made)} made"
        made, there = made | fresh, there | files.keys()
    new, old = (Counter(path.parent.name for path in paths) for paths in (made, there - made))
    for kind, words in KINDS.items():
        if new[kind] or old[kind]:
            yield f"{words}: {new[kind]} made, {old[kind]} there already"
    yield f"cache: {roots.cache}"


def _read(specs: Sequence[RunSpec]) -> str:
    """Read every data set and corpus once."""
    datasets = {id(spec.dataset): spec.dataset for spec in specs}
    for dataset in (distinct := set(datasets.values())):
        dataset.load()
    tasks = [task for spec in {id(s.eval): s for s in specs}.values() for task in spec.eval.tasks.values()]
    corpora = {task.corpus for task in tasks if hasattr(task, "corpus")}
    for corpus in corpora:
        corpus.fingerprint()
    return f"{len(distinct)} data sets and {len(corpora)} texts read"

"""`ablora report STUDY`: studies/<name>/report.html."""

from collections.abc import Callable
from pathlib import Path

from ablora.store.atomic import write_text
from ablora.store.roots import Roots
from ablora.store.run_folder import RunFolder
from ablora_analysis.report.evidence import read
from ablora_analysis.report.page import page


def write(roots: Roots, study: str, stale: Callable[[RunFolder], bool] = RunFolder.is_stale) -> Path:
    """Write the page; returns its path. A study without a finished run has a page too, which shows what went wrong. A
    file that cannot be read stands in the page as a warning; when it is written, `Corrupted` names the first."""
    evidence = read(roots, study, stale)
    path = roots.studies / study / "report.html"
    write_text(path, page(evidence), durable=False)
    if evidence.problems:
        raise evidence.problems[0]
    return path

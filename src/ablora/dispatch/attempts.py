"""How often a run whose process died without a word is sent again before somebody has to ask for it."""

from ablora.store import atomic
from ablora.store.claims import deaths
from ablora.store.run_folder import SCHEMA, RunFolder

MOST = 5
"""Deaths: SIGKILL, a lost node, the machine's memory. A stop that leaves a checkpoint is none."""


def is_exhausted(folder: RunFolder) -> bool:
    """Whether a lost run has died so often that the same command leaves it alone; each retry allows as many again."""
    return deaths(folder) >= MOST * (1 + len(folder.set_aside))


def allow_more(folder: RunFolder, kind: str) -> None:
    """Write down, beside the failures that were set aside, that a run is tried again in spite of its deaths."""
    record = {"schema": SCHEMA, "id": folder.id, "class": kind, "traceback": ""}
    record["message"] = f"its process died {deaths(folder)} times without a word"
    atomic.write_json(folder.path / f"failure.{len(folder.set_aside)}.json", record)

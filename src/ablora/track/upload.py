"""Offline logs to W&B, by its own `wandb sync`, in processes that are bounded in time."""

import contextlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ablora.store import atomic
from ablora.store.roots import Roots
from ablora.store.run_folder import RunFolder
from ablora.track import mirror
from ablora.track.login import host
from ablora.track.surroundings import environment

BATCH = 16
"""Runs per call of `wandb sync`, which takes about a second to start."""
BASE_S, PER_RUN_S = 60.0, 30.0
GIVE_UP_AFTER = 3
"""Runs in a row that fail on their own before the service is taken to be away."""


def upload_logs(roots: Roots, logs: dict[RunFolder, Path]) -> set[RunFolder]:
    """In batches; what a batch leaves behind is tried alone, so that one bad log does not keep back the rest."""
    done: set[RunFolder] = set()
    folders = list(logs)
    failed_in_a_row = 0
    for start in range(0, len(folders), BATCH):
        batch = folders[start : start + BATCH]
        done |= _upload(roots, {folder: logs[folder] for folder in batch})
        for folder in [folder for folder in batch if folder not in done]:
            alone = _upload(roots, {folder: logs[folder]}) if len(batch) > 1 else set()
            done |= alone
            failed_in_a_row = 0 if alone else failed_in_a_row + 1
            if failed_in_a_row == GIVE_UP_AFTER:
                print(f"  {GIVE_UP_AFTER} runs in a row could not be uploaded; is {host()} reachable?")
                return done
    return done


def _upload(roots: Roots, logs: dict[RunFolder, Path]) -> set[RunFolder]:
    """One call of wandb's own client; the runs that it marked as synced."""
    command = [sys.executable, "-m", "wandb", "sync", *(str(path) for path in logs.values())]
    limit_s = BASE_S + PER_RUN_S * len(logs)
    with tempfile.TemporaryDirectory() as elsewhere, contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(
            command, cwd=elsewhere, env=environment(roots.cache, settled=True), timeout=limit_s,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False,
        )  # fmt: skip
    done = {folder for folder, path in logs.items() if any(path.glob("*.wandb.synced"))}
    for folder in done:
        mark(folder)
    return done


def mark(folder: RunFolder) -> None:
    """Note in the run folder that W&B has the run."""
    value = {"schema": mirror.SCHEMA, "id": folder.id, "host": host(), "time_s": time.time()}
    atomic.write_json(mirror.uploaded_path(folder), value)

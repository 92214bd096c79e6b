"""Upload what was tracked offline, each run once; make a run's W&B log again from its folder alone."""

import contextlib
import importlib.util
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ablora.spec import BadInput
from ablora.store import atomic
from ablora.store.claims import is_held
from ablora.store.roots import Roots
from ablora.store.run_folder import RunFolder, folder_of
from ablora.track import describe, mirror
from ablora.track.config import TrackerConfig
from ablora.track.login import has_login, host
from ablora.track.observer import Wandb
from ablora.track.upload import mark, upload_logs


def sync(roots: Roots, study: str | None) -> int:
    """Upload the ended runs (of a study) that have not been uploaded: 0, 2 without a login, 3 if some failed."""
    todo, left = _select(roots, study)
    for reason, count in left.items():
        print(f"{count} runs {reason}")
    if not todo:
        print("nothing to upload")
        return 0
    if importlib.util.find_spec("wandb") is None or not has_login():
        missing = f"no W&B login for {host()}: set WANDB_API_KEY, or run `wandb login`"
        if importlib.util.find_spec("wandb") is None:
            missing = "wandb is not installed: `pip install 'ablora[wandb]'`"
        print(f"{len(todo)} runs wait to be uploaded, but {missing}; then `ablora sync` again")
        return 2
    known = [folder for folder in todo if mirror.known_to_server(folder)]
    logs = dict(_logs(roots, [folder for folder in todo if folder not in known]))
    done = upload_logs(roots, logs)
    done |= _send_the_rest(roots, known)
    print(f"uploaded {len(done)} of {len(todo)} runs to {host()}")
    for folder in todo:
        if folder not in done:
            print(f"  not uploaded: {folder.id}")
    return 0 if len(done) == len(todo) else 3


def rebuild(roots: Roots, run_id: str, config: TrackerConfig | None = None, study: str | None = None) -> Path:
    """The offline log of a run, made from its folder alone; gives wandb's folder of it."""
    folder = folder_of(roots, run_id)
    chosen = config or _tracked_as(folder)
    with contextlib.closing(Wandb(chosen, study, roots)) as observer:
        return _rebuild(roots, folder, chosen, study, observer)


def _rebuild(roots: Roots, folder: RunFolder, config: TrackerConfig, study: str | None, observer: Wandb) -> Path:
    told = {**describe.card(folder, folder.read_spec(), config, study, roots), "mode": "offline"}
    observer.follow(folder, told)
    answer = observer.settle(folder, _state(folder))
    if answer["mode"] != "offline":
        raise RuntimeError(f"run {folder.id}: {'; '.join(_note(folder).get('trouble', ['no log was made']))}")
    return _log_folder(folder)


def _select(roots: Roots, study: str | None) -> tuple[list[RunFolder], dict[str, int]]:
    """What to upload, and how many are left out for which reason."""
    todo, left = [], {}
    for folder in _folders(roots, study):
        note = _note(folder)
        online = note.get("mode") == "online" and note.get("state") == "closed"
        if not note or online or mirror.uploaded_path(folder).exists():
            continue
        reason = None
        if _state(folder) not in ("done", "failed"):
            reason = "have not ended; upload them later"
        elif is_held(folder):
            reason = "are running; upload them later"
        elif not _mine(folder):
            reason = "are in folders that you cannot write to; their owner uploads them"
        if reason is None:
            todo.append(folder)
        else:
            left[reason] = left.get(reason, 0) + 1
    return todo, left


def _folders(roots: Roots, study: str | None) -> Iterator[RunFolder]:
    if study is None:
        ids: Iterable[str] = sorted(path.parent.name for path in roots.runs.glob("*/track.json"))
    else:
        manifest = roots.studies / study / "manifest.jsonl"
        if not manifest.exists():
            known = sorted(path.parent.name for path in roots.studies.glob("*/manifest.jsonl"))
            raise BadInput("study", study, f"one of {', '.join(known) or '(none yet)'}")
        ids = describe.runs_of(manifest)
    yield from (folder_of(roots, run) for run in ids)


def _state(folder: RunFolder) -> str:
    return "done" if folder.result.exists() else "failed" if folder.failure.exists() else "running"


def _note(folder: RunFolder) -> dict[str, Any]:
    path = mirror.note_path(folder)
    return atomic.read_json(path) if path.exists() else {}


def _mine(folder: RunFolder) -> bool:
    try:
        mirror.require_writable(mirror.view_folder(folder))
    except OSError:
        return False
    return True


def _tracked_as(folder: RunFolder) -> TrackerConfig:
    note = _note(folder)
    return TrackerConfig("wandb", "offline", note.get("project") or "ablora", note.get("entity"))


def _send_the_rest(roots: Roots, folders: list[RunFolder]) -> set[RunFolder]:
    """Runs of which the service has a part: from their folders, by a client that asks how far it is."""
    done: set[RunFolder] = set()
    with contextlib.closing(Wandb(TrackerConfig("wandb", "online"), None, roots)) as observer:
        for folder in folders:
            try:
                told = describe.card(folder, folder.read_spec(), _tracked_as(folder), None, roots)
                observer.follow(folder, {**told, "mode": "online"})
                answer = observer.settle(folder, _state(folder))
            except Exception as error:  # one folder that cannot be read does not keep the others here
                print(f"  {folder.id}: {type(error).__name__}: {error}")
                continue
            if answer["mode"] != "online":
                break  # the network is away: the others would end the same way
            mark(folder)
            done.add(folder)
    return done


def _log_folder(folder: RunFolder) -> Path:
    return max(mirror.view_folder(folder).glob("offline-run-*"))


def _logs(roots: Roots, todo: list[RunFolder]) -> Iterator[tuple[RunFolder, Path]]:
    """The offline log of each run; one that was cut short (the tracker or the machine died) is made again."""
    with contextlib.closing(Wandb(TrackerConfig("wandb", "offline"), None, roots)) as observer:
        for folder in todo:
            note = _note(folder)
            try:
                if note["mode"] == "offline" and note["state"] == "closed" and note.get("ended") == _state(folder):
                    yield folder, _log_folder(folder)
                else:
                    yield folder, _rebuild(roots, folder, _tracked_as(folder), None, observer)
            except Exception as error:  # one folder that cannot be read does not keep the others here
                print(f"  {folder.id}: {type(error).__name__}: {error}")
